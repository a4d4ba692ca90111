"""The paired bootstrap, against sacreBLEU's own."""

from __future__ import annotations

import random

import pytest
from sacrebleu.significance import PairedTest

from peft_landermt.errors import CorpusError
from peft_landermt.translation import compare_translations, metrics_for

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
