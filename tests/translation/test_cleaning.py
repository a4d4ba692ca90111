"""Cleaning: what each rule removes and spares, the order of rules, normalisation, and the report."""

from __future__ import annotations

import sys
import time
import unicodedata
from collections import Counter
from typing import Any

import pytest

from peft_landermt.demo import load_demo_corpus
from peft_landermt.errors import CorpusError
from peft_landermt.translation import Corpus, TranslationExample
from peft_landermt.translation.cleaning import RULES, CleaningReport, clean
from peft_landermt.translation.composing import MAX_DECOMPOSED, compose
from peft_landermt.translation.identification import _identifier

GOOD = TranslationExample("The house is old.", "Das Haus ist alt.", "en-de")


def removed_by(source: str, target: str, pair: str = "en-de", **limits: Any) -> str | None:
    """The rule that removes an example, or None where it is kept."""
    corpus = Corpus([TranslationExample("one", "two", "en-fr"), TranslationExample(source, target, pair)])
    _, report = clean(corpus, **limits)
    rules = [rule for rule, count in report.removed.items() if count]
    assert report.kept + len(rules) == 2
    return rules[0] if rules else None


@pytest.mark.parametrize(
    ("source", "target", "rule"),
    [
        ("", "Haus", "empty"),
        ("house", " \t\u00a0\u3000", "empty"),
        ("", "", "empty"),
        ("a" * 1000, "b" * 1000, None),
        ("a" * 1001, "b" * 1000, "too_long"),
        ("a" * 1000, "b" * 1001, "too_long"),
        ("a" * 5, "b" * 20, None),
        ("a" * 5, "b" * 21, "length_ratio"),
        ("a" * 21, "b" * 5, "length_ratio"),
        ("a" * 6, "b" * 24, None),
        ("a", "b" * 20, None),
        ("Straße  Nr. 1", "STRASSE nr. 1", "copy"),
        ("caf\u00e9", "Cafe\u0301", "copy"),
        ("café", "cafe", None),
    ],
)
def test_rules_of_one_example(source: str, target: str, rule: str | None) -> None:
    assert removed_by(source, target) == rule


@pytest.mark.parametrize(
    ("pair", "weight"),
    [
        *((f"en-{code}", 3) for code in ("zh", "zho", "chi", "cmn", "zh_Hans", "zho_Hans", "zh_Hant", "zh_TW", "yue")),
        *((f"eng_Latn-{code}", 3) for code in ("zho_Hant", "yue_Hant", "wuu", "nan", "lzh", "cmn_Hant", "vi_Hani")),
        *((f"eng-{code}", 3) for code in ("ja", "jpn", "jpn_Jpan", "ja_JP")),
        *((f"en-{code}", 2) for code in ("ko", "kor", "kor_Hang", "ko_KR", "ko_Kore")),
        *((f"en-{code}", 1) for code in ("zu", "zul_Latn", "zh_Latn", "ja_Latn", "ko_Latn", "vi", "th", "sr_Cyrl")),
    ],
)
def test_length_ratio_weighs_dense_scripts(pair: str, weight: int) -> None:
    dense, longest = "字" * 10, 4 * 10 * weight
    assert removed_by("a" * longest, dense, pair) is None
    assert removed_by("a" * (longest + 1), dense, pair) == "length_ratio"
    reverse = "-".join(reversed(pair.split("-")))
    assert removed_by(dense, "a" * (longest + 1), reverse) == "length_ratio"
    # 21 weighted characters of the dense side are enough for the rule to apply
    assert removed_by("a", "字" * (20 // weight), pair) is None
    assert removed_by("a", "字" * (20 // weight + 1), pair) == "length_ratio"


def test_work_is_bounded_before_text_is_composed() -> None:
    """NFC takes time that grows with the square of the number of marks in a row."""
    heap = "a" + "\u0301\u0323" * 100_000
    start = time.perf_counter()
    assert removed_by(heap, "b") == removed_by("b", heap, max_characters=10**9) == "too_long"
    many = "e" + "\u0301\u0323" * 400
    corpus = Corpus([GOOD, *[TranslationExample(many, "gut", "en-de")] * 2_000])
    assert clean(corpus)[1].removed["too_long"] == 2_000
    assert time.perf_counter() - start < 20


@pytest.mark.parametrize(
    ("count", "rule"), [(1, None), (2, None), (30, None), (31, "too_long"), (999, "too_long"), (5_000, "too_long")]
)
def test_marks_in_a_row(count: int, rule: str | None) -> None:
    assert removed_by("Zalgo" + "\u0323" * count, "x" * (count + 2)) == rule


@pytest.mark.parametrize(
    "text",
    [
        "Phở bò ngon lắm, thật đấy.",
        "한국어로 번역한 문장입니다.",
        "ᾂᾳ ᾧ ᾯ",
        "กำลังใจดีมาก",
        "שָׁלוֹם עֲלֵיכֶם",
        "हिन्दी में लिखा हुआ वाक्य",
    ],
)
def test_decomposed_text_is_as_long_as_composed(text: str) -> None:
    apart, composed = (unicodedata.normalize(form, text) for form in ("NFD", "NFC"))
    limit = len(composed)
    kept, report = clean(
        Corpus([TranslationExample(apart, "b" * limit, "en-de")]), max_characters=limit, max_length_ratio=1e9
    )
    assert (kept.examples[0].source, report.kept) == (composed, 1)
    assert removed_by(apart + "x", "b" * limit, max_characters=limit) == "too_long"


def test_nothing_composes_to_less_than_a_quarter() -> None:
    """What lets long text be refused before it is composed."""
    longest = max(len(unicodedata.normalize("NFD", chr(code))) for code in range(sys.maxunicode + 1))
    assert longest == MAX_DECOMPOSED


def test_only_runs_of_marks_stay_as_they_are() -> None:
    run = "\u0301" * 31
    assert compose(f"e\u0301 e{run} e\u0301") == f"\u00e9 e{run} \u00e9"
    assert compose("e" + "\u0301" * 30) == "\u00e9" + "\u0301" * 29


def test_limits() -> None:
    assert removed_by("a" * 11, "b" * 11, max_characters=10) == "too_long"
    assert removed_by("a" * 30, "b" * 20, max_length_ratio=1.4) == "length_ratio"
    assert removed_by("a" * 30, "b" * 20, max_length_ratio=1.5) is None
    assert removed_by("a", "b" * 900, max_length_ratio=float("inf")) is None


@pytest.mark.parametrize(
    ("field", "value"),
    [("max_characters", 0), ("max_length_ratio", 0.9), ("max_length_ratio", float("nan"))],
)
def test_limits_out_of_range(field: str, value: Any) -> None:
    with pytest.raises(CorpusError, match=f"{field}={value}: must be at least 1") as caught:
        clean(Corpus([GOOD]), **{field: value})
    assert caught.value.field == field


@pytest.mark.parametrize(
    ("raw", "normal"),
    [
        ("cafe\u0301", "caf\u00e9"),
        (" a\u00a0\u202f b\u2028c\x0bd\r", "a b c d"),
        ("\ufb01n", "\ufb01n"),
        ("a\u200bb", "a\u200bb"),
    ],
)
def test_text_is_normalised(raw: str, normal: str) -> None:
    kept, _ = clean(Corpus([TranslationExample(raw, f"x {raw}", "en-de")]))
    assert kept.examples == [TranslationExample(normal, f"x {normal}", "en-de")]


def test_duplicates_are_counted_within_a_language_pair() -> None:
    house, spaced = GOOD, TranslationExample(" The  house is old.", "Das Haus\u00a0ist alt.", "en-de")
    dutch = TranslationExample(house.source, house.target, "en-nl")
    other = TranslationExample(house.source, "Alt ist das Haus.", "en-de")
    kept, report = clean(Corpus([house, spaced, dutch, other, house, dutch]))
    assert kept.examples == [house, dutch, other]
    assert report.removed["duplicate"] == 3


def test_an_example_counts_under_the_first_rule_it_breaks() -> None:
    long, short = "a" * 1001, "b"
    rows = [("", long), (long, long), (long, short), ("a" * 30, short), ("tea", "Tea"), ("tea", "Tea")]
    _, report = clean(Corpus([GOOD, GOOD, *(TranslationExample(s, t, "en-de") for s, t in rows)]))
    assert report == CleaningReport(1, {"empty": 1, "too_long": 2, "length_ratio": 1, "copy": 2, "duplicate": 1})


def test_report_names_every_rule_in_order_on_one_line() -> None:
    kept, report = clean(Corpus([GOOD, TranslationExample("", "x", "en-de"), GOOD]))
    assert len(kept) == report.kept == 1
    assert tuple(report.removed) == RULES
    assert str(report) == (
        "kept 1 of 3 sentence pairs; removed: empty 1, too_long 0, length_ratio 0, copy 0, duplicate 1"
    )


def test_the_input_stays_and_its_skipped_rows_are_passed_on() -> None:
    corpus = Corpus([TranslationExample(" a ", "b", "en-de")], Counter({"not UTF-8": 2}))
    kept, _ = clean(corpus)
    assert corpus.examples[0].source == " a "
    assert kept.skipped == corpus.skipped
    kept.skipped["not UTF-8"] += 1
    assert corpus.skipped == {"not UTF-8": 2}


def test_nothing_left_is_an_error_with_all_counts() -> None:
    with pytest.raises(CorpusError) as caught:
        clean(Corpus([TranslationExample("tea", "Tea", "en-de"), TranslationExample("", "", "en-de")]))
    assert str(caught.value) == (
        "corpus='2 sentence pairs': cleaning leaves none of them "
        "(empty 1, too_long 0, length_ratio 0, copy 1, duplicate 0); check the corpus and the limits."
    )


@pytest.mark.parametrize(
    ("source", "target", "pair", "rule"),
    [
        ("The museum opens at nine o'clock.", "Das Museum öffnet um neun Uhr.", "en-de", None),
        ("Das Museum öffnet um neun Uhr.", "The museum opens at nine o'clock.", "en-de", "language"),
        ("The museum opens at nine o'clock.", "Le musée ouvre à neuf heures.", "en-de", "language"),
        ("The museum opens at nine o'clock.", "Le musée ouvre à neuf heures.", "eng_Latn-fra_Latn", None),
        ("The museum opens at nine o'clock.", "博物馆早上九点钟开门，下午五点钟关门，欢迎大家来参观。", "en-zh", None),
        ("Bonjour.", "Buongiorno.", "en-de", None),  # short
        ("The museum opens at nine o'clock.", "Le musée ouvre à neuf heures.", "en-yi", None),  # not known
        ("The museum opens at nine o'clock.", "Museet åpner klokken ni om morgenen.", "en-nb", None),
        ("The museum opens at nine o'clock.", "Museet åpner klokken ni om morgenen.", "eng_Latn-nob_Latn", None),
        ("The museum opens at nine o'clock.", "Das Museum öffnet um neun Uhr.", "en-nob", "language"),
        (
            "The museum opens at nine o'clock.",
            "博物館早上九點鐘開門，下午五點鐘關門，歡迎大家來參觀。",
            "en-zh_TW",
            None,
        ),
        ("The museum opens at nine o'clock.", "Muzej se otvara u devet sati ujutru.", "en-sr_Latn", None),  # a script
    ],
)
def test_languages(source: str, target: str, pair: str, rule: str | None) -> None:
    assert removed_by(source, target, pair, check_languages=True) == rule
    assert removed_by(source, target, pair) is None


def test_the_whole_demo_corpus_is_in_its_languages() -> None:
    corpus = load_demo_corpus()
    for pair in ("en-de", "fr-it", "ar-zh"):
        examples = [TranslationExample(*texts, pair) for texts in zip(*corpus.pair(pair), strict=True)]
        assert clean(Corpus(examples), check_languages=True)[1].removed["language"] == 0


def test_identification_needs_its_library(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "py3langid.langid", None)
    _identifier.cache_clear()
    with pytest.raises(CorpusError, match=r"check_languages=True: needs py3langid; run pip install"):
        clean(Corpus([GOOD]), check_languages=True)
