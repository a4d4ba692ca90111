"""The paired bootstrap, against sacreBLEU's own."""

from __future__ import annotations

import random
from statistics import mean

import pytest
from sacrebleu.significance import PairedTest

from peft_landermt.errors import CorpusError
from peft_landermt.translation import compare_over_pairs, compare_translations, metrics_for

REFERENCES = [
    f"the {size} {thing} stands {place} the house of {whose}"
    for size in ("old", "small", "red")
    for thing in ("tree", "car", "clock")
    for place in ("behind", "beside")
    for whose in ("Anna", "our teacher")
]


def worsened(share: float, seed: int) -> list[str]:
    """The references with a share of their words exchanged for another."""
    draw = random.Random(seed)
    return [" ".join("thing" if draw.random() < share else word for word in line.split()) for line in REFERENCES]


@pytest.mark.parametrize("share", [0.2, 0.25, 0.4])
def test_p_and_scores_are_those_of_sacrebleu(share: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SACREBLEU_SEED", raising=False)
    ours, baseline = worsened(0.2, 0), worsened(share, 1)
    metrics = metrics_for("de-en")._asdict()
    _, found = PairedTest([("baseline", baseline), ("ours", ours)], metrics, [REFERENCES], test_type="bs")()
    by_sacrebleu = [scores for name, scores in found.items() if name != "System"]
    compared_scores = compare_translations(ours, baseline, REFERENCES, "de-en").values()
    for compared, (other, own) in zip(compared_scores, by_sacrebleu, strict=True):
        assert compared.score == pytest.approx(other.score)
        assert compared.difference == pytest.approx(own.score - other.score)
        assert compared.p_value == pytest.approx(own.p_value, abs=2e-3)
        assert compared.low < compared.difference < compared.high


def test_a_system_is_as_good_as_itself() -> None:
    texts = worsened(0.2, 0)
    for found in compare_translations(texts, texts, REFERENCES, "de-en").values():
        assert found[1:] == (0.0, 0.0, 0.0, 1.0)


@pytest.mark.parametrize("lengths", [(1, 2, 2), (2, 1, 2), (2, 2, 1), (0, 0, 0)])
def test_numbers_of_sentences_must_agree(lengths: tuple[int, int, int]) -> None:
    with pytest.raises(CorpusError, match="references"):
        compare_translations(*(REFERENCES[:length] for length in lengths), "de-en")


def test_directions_of_one_test_set_are_resampled_together() -> None:
    """Two directions with the same lines are as uncertain as one; with lines that are hard elsewhere, less."""
    ours, baseline = worsened(0.2, 0), worsened(0.4, 1)
    alone = compare_translations(ours, baseline, REFERENCES, "de-en")
    twice = compare_over_pairs(*(dict.fromkeys(("de-en", "fr-en"), texts) for texts in (ours, baseline, REFERENCES)))
    assert twice == alone
    apart = compare_over_pairs(*({"de-en": texts, "fr-en": texts[::-1]} for texts in (ours, baseline, REFERENCES)))
    assert apart["chrf"].difference == pytest.approx(alone["chrf"].difference)
    assert apart["chrf"].high - apart["chrf"].low < alone["chrf"].high - alone["chrf"].low


def test_a_mean_over_directions_by_hand() -> None:
    """Every direction is scored by itself, with a tokenizer of its own, and counts as much as any other."""
    ours = {"de-en": worsened(0.2, 0), "en-zh": ["房子旧。", "树高。"]}
    baseline = {"de-en": worsened(0.4, 1), "en-zh": ["房子。", "树不高。"]}
    references = {"de-en": REFERENCES, "en-zh": ["房子很旧。", "树很高。"]}
    single = [compare_translations(ours[pair], baseline[pair], references[pair], pair) for pair in references]
    for name, found in compare_over_pairs(ours, baseline, references).items():
        assert found.score == pytest.approx(mean(one[name].score for one in single))
        assert found.difference == pytest.approx(mean(one[name].difference for one in single))


@pytest.mark.parametrize("pairs", [(["de-en"], ["de-en", "en-de"]), (["en-de"], ["de-en"]), ([], [])])
def test_directions_must_be_the_same(pairs: tuple[list[str], list[str]]) -> None:
    own, other = (dict.fromkeys(names, REFERENCES) for names in pairs)
    with pytest.raises(CorpusError, match="same directions"):
        compare_over_pairs(own, other, own)
