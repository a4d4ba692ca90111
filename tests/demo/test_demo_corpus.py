"""The corpus that comes with the package: complete, clean, and split without overlap."""

from __future__ import annotations

import unicodedata
from collections import Counter
from importlib.resources import files

import pytest

from peft_landermt.demo import DemoCorpus, load_demo_corpus
from peft_landermt.errors import LanguagePairError
from peft_landermt.translation import Corpus, TranslationExample, clean

LANGUAGES = ["en", "de", "fr", "it", "ar", "zh"]
PARTS = ("calibration", "train", "test")


@pytest.fixture(scope="module")
def table() -> list[list[str]]:
    """The file, read without the library's reader."""
    text = files("peft_landermt.demo").joinpath("corpus.tsv").read_bytes().decode("utf-8")
    assert "\r" not in text
    return [line.split("\t") for line in text.removesuffix("\n").split("\n")]


@pytest.fixture(scope="module")
def corpus() -> DemoCorpus:
    return load_demo_corpus()


def column(corpus: DemoCorpus, language: str) -> list[str]:
    return [sentence for part in PARTS for sentence in getattr(corpus, part)[language]]


def test_shape(table: list[list[str]], corpus: DemoCorpus) -> None:
    assert table[0] == ["topic", *LANGUAGES]
    assert {len(row) for row in table} == {1 + len(LANGUAGES)}
    assert len(table) - 1 >= 300
    assert corpus.languages == LANGUAGES


def test_cells_are_clean(table: list[list[str]]) -> None:
    for row in table[1:]:
        for cell in row:
            assert cell, row
            assert cell == " ".join(cell.split()) == unicodedata.normalize("NFC", cell)
            assert not any(unicodedata.category(character) in ("Cc", "Cf", "Co", "Cn") for character in cell), cell


def test_no_sentence_comes_twice(table: list[list[str]]) -> None:
    for number, language in enumerate(LANGUAGES, 1):
        # case and punctuation apart, so that near copies count too
        plain = ["".join(filter(str.isalnum, row[number].casefold())) for row in table[1:]]
        twice = [sentence for sentence, count in Counter(plain).items() if count > 1]
        assert not twice, (language, twice)


def test_parts_hold_every_row_once(table: list[list[str]], corpus: DemoCorpus) -> None:
    rows = {part: list(zip(*(getattr(corpus, part)[code] for code in LANGUAGES), strict=True)) for part in PARTS}
    assert sorted(row for part in PARTS for row in rows[part]) == sorted(tuple(row[1:]) for row in table[1:])
    sets = {part: set(members) for part, members in rows.items()}
    assert not sets["train"] & sets["test"]
    assert not sets["calibration"] & sets["test"]
    assert not sets["calibration"] & sets["train"]
    # one row in six is held out, one in six is for calibration
    total = len(table) - 1
    assert len(rows["test"]) == pytest.approx(total / 6, abs=1)
    assert len(rows["calibration"]) == pytest.approx(total / 6, abs=1)


def test_every_topic_is_in_every_part(table: list[list[str]], corpus: DemoCorpus) -> None:
    topic_of = {row[1]: row[0] for row in table[1:]}
    topics = {part: Counter(topic_of[sentence] for sentence in getattr(corpus, part)["en"]) for part in PARTS}
    assert len(topics["train"]) >= 30
    for part in PARTS:
        assert topics[part].keys() == set(topic_of.values())


def share(text: str, *prefixes: str) -> float:
    letters = [character for character in text if character.isalpha()]
    return sum(unicodedata.name(character).startswith(prefixes) for character in letters) / len(letters)


@pytest.mark.parametrize("language", LANGUAGES)
def test_scripts(corpus: DemoCorpus, language: str) -> None:
    script = {"ar": "ARABIC", "zh": "CJK"}.get(language, "LATIN")
    for sentence in column(corpus, language):
        assert share(sentence, script) == 1 or (script != "LATIN" and share(sentence, script) > 0.7), sentence


def test_latin_columns_are_in_their_languages(corpus: DemoCorpus) -> None:
    """Function words that the other three languages do not have; most sentences have one."""
    words = {
        "en": {"the", "of", "and", "is", "to", "was", "you", "that"},
        "de": {"der", "und", "nicht", "das", "ist", "wir", "ich", "den", "die", "ein", "zu"},
        "fr": {"les", "est", "des", "une", "pas", "du", "et", "nous", "je", "au"},
        "it": {"il", "di", "che", "è", "della", "gli", "per", "non", "una", "del"},
    }
    for language in words:
        counts = Counter(
            other
            for sentence in column(corpus, language)
            for other in words
            if words[other] & set("".join(c if c.isalpha() else " " for c in sentence.casefold()).split())
        )
        assert counts.most_common(1)[0][0] == language, counts
        assert counts[language] > 0.6 * len(column(corpus, language)), counts


@pytest.mark.parametrize("pair", ["en-de", "de-en", "fr-en", "en-it", "ar-en", "en-zh"])
def test_rows_survive_cleaning(corpus: DemoCorpus, pair: str) -> None:
    rows = corpus.training_rows([pair])
    kept, report = clean(Corpus([TranslationExample(**row) for row in rows]))
    assert [example.to_row() for example in kept] == rows, report


def test_training_rows_are_aligned(table: list[list[str]], corpus: DemoCorpus) -> None:
    rows = corpus.training_rows(["en-de", "zh-ar"])
    assert len(rows) == 2 * len(corpus.train["en"])
    expected = {("en-de", row[1], row[2]) for row in table[1:]} | {("zh-ar", row[6], row[5]) for row in table[1:]}
    assert {(row["language_pair"], row["source"], row["target"]) for row in rows} <= expected
    assert {row["source"] for row in rows if row["language_pair"] == "en-de"} == set(corpus.train["en"])


@pytest.mark.parametrize("part", PARTS)
def test_pair_gives_both_sides_of_a_part(corpus: DemoCorpus, part: str) -> None:
    assert corpus.pair("it-fr", part) == (list(getattr(corpus, part)["it"]), list(getattr(corpus, part)["fr"]))


@pytest.mark.parametrize("pair", ["en-es", "ja-en", "english"])
def test_languages_that_are_not_there(corpus: DemoCorpus, pair: str) -> None:
    with pytest.raises(LanguagePairError, match=pair):
        corpus.pair(pair)
    with pytest.raises(LanguagePairError, match=pair):
        corpus.training_rows(["en-de", pair])
