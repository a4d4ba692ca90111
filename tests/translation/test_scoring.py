"""Scores: the same as sacreBLEU called directly, with the tokenizer of the target language."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch.distributed as dist
from sacrebleu.metrics import BLEU, CHRF
from transformers import PreTrainedTokenizerFast

from peft_landermt import evaluate_translation, translate
from peft_landermt.errors import CorpusError, LanguagePairError
from peft_landermt.translation import score_translations

from ..conftest import SENTENCES, build_model
from ..tuner.helpers import join_processes

HYPOTHESES = ["Das Haus ist sehr alt.", "Wir trinken gern Tee.", "Wo ist der alte Bahnhof?", ""]
REFERENCES = SENTENCES["de"]


def test_scores_equal_sacrebleu() -> None:
    scores = score_translations(HYPOTHESES, REFERENCES, "en-de")
    bleu, chrf = BLEU(tokenize="13a"), CHRF(word_order=2, char_order=6)
    assert scores.bleu == bleu.corpus_score(HYPOTHESES, [REFERENCES]).score
    assert scores.chrf == chrf.corpus_score(HYPOTHESES, [REFERENCES]).score
    assert 0 < scores.bleu < 100
    assert scores.bleu_signature == str(bleu.get_signature())
    assert scores.chrf_signature == str(chrf.get_signature())
    assert "nw:2" in scores.chrf_signature
    assert (scores.language_pair, scores.hypotheses) == ("en-de", HYPOTHESES)
    assert (scores.num_empty, scores.num_runaway) == (1, 0)


def test_perfect_and_hopeless_translations() -> None:
    perfect = score_translations(REFERENCES, REFERENCES, "en-de")
    assert (perfect.bleu, perfect.chrf) == (pytest.approx(100), pytest.approx(100))
    hopeless = score_translations(["", " ", "\n", ""], REFERENCES, "en-de", num_runaway=3)
    assert (hopeless.bleu, hopeless.chrf, hopeless.num_empty, hopeless.num_runaway) == (0, 0, 4, 3)


@pytest.mark.parametrize(
    ("pair", "tokenizer"), [("en-de", "13a"), ("zh-en", "13a"), ("en-zh", "zh"), ("en-zh_Hant", "zh")]
)
def test_tokenizer_of_the_target_language(pair: str, tokenizer: str) -> None:
    hypotheses, references = ["今天天气不好。", "我们喝茶。"], ["今天的天气很好。", "我们喝茶。"]
    scores = score_translations(hypotheses, references, pair)
    assert f"tok:{tokenizer}" in scores.bleu_signature.split("|")
    assert scores.bleu == BLEU(tokenize=tokenizer).corpus_score(hypotheses, [references]).score
    # 13a takes a Chinese sentence for one word: no 4-gram can match
    assert (scores.bleu > 30) == (tokenizer == "zh")


@pytest.mark.parametrize(("hypotheses", "references"), [(["a", "b"], ["a"]), (["a"], ["a", "b"]), ([], [])])
def test_numbers_must_agree(hypotheses: list[str], references: list[str]) -> None:
    with pytest.raises(CorpusError, match=f"one reference for each of the {len(hypotheses)} translations"):
        score_translations(hypotheses, references, "en-de")


def test_malformed_pair() -> None:
    with pytest.raises(LanguagePairError):
        score_translations(["a"], ["a"], "en")


@pytest.mark.parametrize(("sources", "references"), [(["a", "b"], ["a"]), (["a"], ["a", "b"]), ([], [])])
def test_numbers_are_checked_before_translating(
    tokenizer: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch, sources: list[str], references: list[str]
) -> None:
    model = build_model("llama")
    monkeypatch.setattr(model, "generate", lambda *_, **__: pytest.fail("translated"))
    with pytest.raises(CorpusError, match=f"one reference for each of the {len(sources)} sources"):
        evaluate_translation(model, tokenizer, sources, references, "en-de")


@pytest.mark.parametrize(
    "options", [{}, {"batch_size": 2, "max_new_tokens": 5}, {"num_beams": 2, "max_new_tokens": 5}]
)
def test_evaluate_translates_and_scores(tokenizer: PreTrainedTokenizerFast, options: dict[str, Any]) -> None:
    model = build_model("llama")
    sources = [*SENTENCES["en"][:3], " "]
    hypotheses = translate(model, tokenizer, sources, "en-de", **options)
    scores = evaluate_translation(model, tokenizer, sources, hypotheses, "en-de", **options)
    assert scores.hypotheses == hypotheses
    # scored against themselves; chrF++ leaves out the segment without text
    assert scores.chrf == pytest.approx(100)
    assert scores.num_empty == sum(not text for text in hypotheses) >= 1
    assert scores.language_pair == "en-de"


def test_runaways_are_counted(tokenizer: PreTrainedTokenizerFast) -> None:
    """With one token a sentence, whatever is no end is a runaway."""
    model = build_model("llama")
    scores = evaluate_translation(model, tokenizer, SENTENCES["en"], REFERENCES, "en-de", max_new_tokens=1)
    unlimited = evaluate_translation(
        model, tokenizer, SENTENCES["en"], REFERENCES, "en-de", max_new_tokens=1, suppress_tokens=[2, 98]
    )
    assert scores.num_runaway <= unlimited.num_runaway == 4


def test_there_are_no_other_processes(tokenizer: PreTrainedTokenizerFast) -> None:
    with pytest.raises(CorpusError, match="distributed=True: there are no other processes"):
        evaluate_translation(build_model("llama"), tokenizer, ["one"], ["eins"], "en-de", distributed=True)


def test_one_process_shares_with_itself(tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    model, options = build_model("llama"), {"max_new_tokens": 5}
    alone = evaluate_translation(model, tokenizer, SENTENCES["en"], REFERENCES, "en-de", **options)
    join_processes(0, 1, tmp_path)
    try:
        shared = evaluate_translation(model, tokenizer, SENTENCES["en"], REFERENCES, "en-de", True, **options)
        with pytest.raises(LanguagePairError):
            evaluate_translation(model, tokenizer, SENTENCES["en"], REFERENCES, "en-en", True)
    finally:
        dist.destroy_process_group()
    assert shared == alone
