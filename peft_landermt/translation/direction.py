"""Whether rows are what their language pair says: a header line, exchanged columns, another language."""

from __future__ import annotations

import importlib.util
import itertools
import re
import unicodedata
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

from ..errors import LanguagePairError
from ..language_pair import language_name, parse_language, parse_pair, two_letter_code
from .identification import may_be

_COLUMN_NAMES = frozenset(
    [
        *("source", "src", "original"),
        *("target", "tgt", "trg", "translation", "reference", "ref", "mt", "hypothesis"),
    ]
)
_ADDED_TO_NAMES = frozenset(
    ["sentence", "sentences", "segment", "string", "text", "txt", "lang", "language", "column", "col"]
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
_LONGEST_NAME = 60
_FEWEST_LETTERS = 20


def is_header(row: Mapping[str, Any]) -> bool:
    """Tell whether a row names columns: `source` and `target`, or the codes or names of its languages, in whatever
    form tables have them: `sentence_eng_Latn`, `source text`, `EN-GB`."""
    texts, languages = (row["source"], row["target"]), parse_pair(row["language_pair"])
    if texts[0] == texts[1] or max(map(len, texts)) > _LONGEST_NAME:
        return False
    return all(_is_column(text) or any(_is_name(text, language) for language in languages) for text in texts)


def names_exchanged(header: Mapping[str, Any]) -> bool:
    """Tell whether a header line names the target language of its pair first."""
    pair = parse_pair(header["language_pair"])
    return _is_name(header["source"], pair.target) and _is_name(header["target"], pair.source)


class Doubt(NamedTuple):
    """What is doubtful about a corpus, and whether it is that source and target are exchanged, in all rows or for one
    of two pairs."""

    text: str
    exchanged: bool = False


def check_directions(sample: Mapping[str, Sequence[Mapping[str, Any]]]) -> list[Doubt]:
    """Tell what is doubtful about the languages of some rows of every pair.

    All texts of a side are looked at together: by py3langid where that is installed and knows the languages, and by
    their scripts. Two pairs whose rows are the same are doubtful without either.

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
    return _shared_rows(sample) + doubts


def _shared_rows(sample: Mapping[str, Sequence[Mapping[str, Any]]]) -> list[Doubt]:
    """Doubt pairs that have most rows in common, as where one file is given for both directions."""
    texts = {
        name: {(row["source"], row["target"]) for row in rows if row["source"] != row["target"]}
        for name, rows in sample.items()
    }
    return [
        Doubt(f"{one} and {other} have the same sources and targets, such as {sorted(texts[one])[0]}", True)
        for one, other in itertools.combinations(texts, 2)
        if 2 * len(texts[one] & texts[other]) > min(len(texts[one]), len(texts[other]))
    ]


def _fits(text: str, language: str) -> bool:
    """Tell whether text may be in a language, as far as can be told."""
    written, expected = script_of(text), parse_language(language).written_in
    if written is not None and expected in _SCRIPTS and written != _family(expected):
        return False
    return importlib.util.find_spec("py3langid") is None or may_be(text, language)


def _family(script: str) -> str:
    return "Jpan" if script == "Jpan" else _SCRIPTS[script]


def script_of(text: str) -> str | None:
    """Tell what most letters of a text are written in, as `_SCRIPTS` calls it, `Jpan` where there are kana; None for
    less than 20 letters."""
    letters = Counter(unicodedata.name(character, "").split(" ")[0] for character in text if character.isalpha())
    kana = sum(letters.pop(name, 0) for name in _KANA)
    letters["CJK"] += kana
    if letters.total() < _FEWEST_LETTERS:
        return None
    most = letters.most_common(1)[0][0]
    return "Jpan" if most == "CJK" and kana >= _SHARE_OF_KANA * letters["CJK"] else most


def _words(text: str) -> list[str]:
    """Return the words of a name of a column, without numbers behind them."""
    words = re.split(r"[\W_]+", text.casefold())
    return [word for word in (word.rstrip("0123456789") or word for word in words) if word]


def _is_column(text: str) -> bool:
    """Tell whether a text names a column by its place: `source`, `target text`, `sentence1`."""
    words = _words(text)
    rest = [word for word in words if word not in _ADDED_TO_NAMES]
    numbered = bool(words) and text.strip()[-1:].isdigit()
    return len(rest) == 1 and rest[0] in _COLUMN_NAMES if rest else numbered


def _is_name(text: str, language: str) -> bool:
    """Tell whether a text names a column by a code or name of a language, alone or with such words beside it."""
    words = _words(text)
    rest = [word for word in words if word not in _ADDED_TO_NAMES | _COLUMN_NAMES] or words
    return "_".join(rest) in _names(language) or _says(rest, language)


def _says(words: Sequence[str], language: str) -> bool:
    """Tell whether the parts of a code, in whatever case, say a language, its script and region aside."""
    parts = [words[0], *(part.title() if len(part) == 4 else part.upper() for part in words[1:])] if words else []
    try:
        return two_letter_code("_".join(parts)) == two_letter_code(language)
    except LanguagePairError:
        return False


@lru_cache(256)
def _names(language: str) -> set[str]:
    known = parse_language(language).language
    codes = {language, two_letter_code(language), known.code, *known.also, *known.flores}
    forms = {*codes, *(code.partition("_")[0] for code in codes), known.name, language_name(language)}
    return {"_".join(_words(form)) for form in forms}
