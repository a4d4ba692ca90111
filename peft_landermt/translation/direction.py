"""Whether rows are what their language pair says: a header line, exchanged columns, another language."""

from __future__ import annotations

import importlib.util
import unicodedata
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

from ..language_pair import language_name, parse_language, parse_pair, two_letter_code
from .identification import may_be

_COLUMN_NAMES = frozenset(
    [
        *("source", "src", "source_text", "original"),
        *("target", "tgt", "trg", "target_text", "reference", "ref"),
        "translation",
    ]
)
_SCRIPTS = {
    "Latn": "LATIN", "Cyrl": "CYRILLIC", "Grek": "GREEK", "Armn": "ARMENIAN", "Hebr": "HEBREW", "Arab": "ARABIC",
    "Deva": "DEVANAGARI", "Beng": "BENGALI", "Guru": "GURMUKHI", "Gujr": "GUJARATI", "Orya": "ORIYA", "Taml": "TAMIL",
    "Telu": "TELUGU", "Knda": "KANNADA", "Mlym": "MALAYALAM", "Sinh": "SINHALA", "Thai": "THAI", "Laoo": "LAO",
    "Tibt": "TIBETAN", "Mymr": "MYANMAR", "Geor": "GEORGIAN", "Ethi": "ETHIOPIC", "Khmr": "KHMER", "Kore": "HANGUL",
    "Hans": "CJK", "Hant": "CJK", "Jpan": "CJK",
}  # fmt: skip
"""First word of the Unicode names of a script's letters; Japanese is told from Chinese by its kana."""
_KANA = ("HIRAGANA", "KATAKANA")
_SHARE_OF_KANA = 0.1
_MOST_CHARACTERS = 200
_FEWEST_LETTERS = 20


def is_header(row: Mapping[str, Any]) -> bool:
    """Whether a row names columns: `source` and `target`, or the codes or names of its languages."""
    texts = [_as_name(row[side]) for side in ("source", "target")]
    names = _COLUMN_NAMES | {name for language in parse_pair(row["language_pair"]) for name in _names(language)}
    return texts[0] != texts[1] and all(text in names for text in texts)


def names_exchanged(header: Mapping[str, Any]) -> bool:
    """Whether a header line names the target language of its pair first."""
    pair = parse_pair(header["language_pair"])
    return _as_name(header["source"]) in _names(pair.target) and _as_name(header["target"]) in _names(pair.source)


class Doubt(NamedTuple):
    """What is doubtful about a corpus, and whether it is that source and target are exchanged."""

    text: str
    exchanged: bool = False


def check_directions(sample: Mapping[str, Sequence[Mapping[str, Any]]]) -> list[Doubt]:
    """What is doubtful about the languages of some rows of every pair.

    All texts of a side are looked at together: by py3langid where that is installed and knows the languages, and by
    their scripts.

    Args:
        sample: Rows by language pair.
    """
    doubts = []
    for name, rows in sample.items():
        pair = parse_pair(name)
        source, target = (" ".join(row[side][:_MOST_CHARACTERS] for row in rows) for side in ("source", "target"))
        wrong = [
            language for text, language in ((source, pair.source), (target, pair.target)) if not _fits(text, language)
        ]
        shown = f"such as {rows[0]['source'][:40]!r} and {rows[0]['target'][:40]!r}"
        if len(wrong) == 2 and _fits(source, pair.target) and _fits(target, pair.source):
            remedy = f"exchange the columns, or name the pair {pair.target}-{pair.source}"
            doubts.append(Doubt(f"sources and targets of {name} look exchanged, {shown}: {remedy}", True))
        elif wrong:
            doubts.append(Doubt(f"rows of {name} do not look like {' and '.join(map(language_name, wrong))}, {shown}"))
    return doubts


def _fits(text: str, language: str) -> bool:
    """Whether text may be in a language, as far as can be told."""
    written, expected = script_of(text), parse_language(language).written_in
    if written is not None and expected in _SCRIPTS and written != _family(expected):
        return False
    return importlib.util.find_spec("py3langid") is None or may_be(text, language)


def _family(script: str) -> str:
    return "Jpan" if script == "Jpan" else _SCRIPTS[script]


def script_of(text: str) -> str | None:
    """What most letters of a text are written in, as `_SCRIPTS` calls it, `Jpan` where there are kana; None for less
    than 20 letters."""
    letters = Counter(unicodedata.name(character, "").split(" ")[0] for character in text if character.isalpha())
    kana = sum(letters.pop(name, 0) for name in _KANA)
    letters["CJK"] += kana
    if letters.total() < _FEWEST_LETTERS:
        return None
    most = letters.most_common(1)[0][0]
    return "Jpan" if most == "CJK" and kana >= _SHARE_OF_KANA * letters["CJK"] else most


def _as_name(text: str) -> str:
    return text.strip().casefold().replace("-", "_")


@lru_cache(256)
def _names(language: str) -> set[str]:
    known = parse_language(language).language
    codes = {language, two_letter_code(language), known.code, *known.also, *known.flores}
    forms = {*codes, *(code.partition("_")[0] for code in codes), known.name, language_name(language)}
    return {_as_name(form) for form in forms}
