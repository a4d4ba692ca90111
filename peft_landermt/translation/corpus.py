"""Parallel corpora: translation examples, and what reading them left out."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from datasets import Dataset

from ..errors import CorpusError
from ..language_pair import LanguagePair, flores_code
from .examples import COLUMNS, FEATURES, StoredExamples, TranslationExample, store

NOT_UTF8 = "not UTF-8"
MISSING_COLUMN = "missing column"
NUL = "NUL character"
"""No text holds one."""

Outcome = tuple[str, str] | str
"""What a row gives: its source and target, or the reason why it is skipped."""


@dataclass
class Corpus:
    """Translation examples in the order of their file, and what reading left out.

    Attributes:
        examples: The usable rows. Their text is as in the file, and may be empty; see [`clean`]. A list, or, beyond
            a few million characters, a sequence that is read from disk.
        skipped: Number of rows left out, by reason: "not UTF-8", "NUL character", "empty line", "missing column",
            "not JSON", "not a JSON object", "not text" (null, a number), "other language pair", "other script or
            region" (TMX).
    """

    examples: Sequence[TranslationExample]
    skipped: Counter[str] = field(default_factory=Counter)

    def __len__(self) -> int:
        return len(self.examples)

    def __iter__(self) -> Iterator[TranslationExample]:
        return iter(self.examples)

    def to_dataset(self) -> Dataset:
        """Return the examples as a data set with the text columns `source`, `target` and `language_pair`; not a copy
        where they are on disk."""
        if isinstance(self.examples, StoredExamples):
            return self.examples.dataset
        # without explicit features, the columns of an empty corpus would have no type
        return Dataset.from_dict(
            {name: [getattr(example, name) for example in self.examples] for name in COLUMNS}, features=FEATURES
        )


def collect_examples(
    outcomes: Iterable[Outcome], pair: LanguagePair, field_name: str, value: Any, languages: Collection[str] = ()
) -> Corpus:
    """Collect the rows that give an example, and count those that do not by reason.

    Args:
        outcomes: What the rows give, read once.
        pair: Direction of the examples.
        field_name: Name of the argument that the rows came from, for the error.
        value: Its value.
        languages: Codes that the file has, for the error; may fill up while `outcomes` are read.

    Raises:
        CorpusError: If no row gives one.
    """
    skipped: Counter[str] = Counter()

    def examples() -> Iterator[TranslationExample]:
        language_pair = str(pair)
        for outcome in outcomes:
            if isinstance(outcome, str):
                skipped[outcome] += 1
            elif (problem := text_problem(*outcome)) is not None:
                skipped[problem] += 1
            else:
                yield TranslationExample(*outcome, language_pair)

    corpus = Corpus(store(examples()), skipped)
    if not corpus.examples:
        reasons = ", ".join(f"{reason} {count}" for reason, count in skipped.items()) or "none; it is empty"
        there = f" It has {', '.join(languages)}." if languages else ""
        remedy = f"has no usable row for {pair} (skipped: {reasons}); check its form and encoding.{there}"
        raise CorpusError(field_name, value, remedy)
    return corpus


def text_problem(source: str, target: str) -> str | None:
    """Tell why two strings are no text that tokenizers and files take; None if they are."""
    if "\0" in source or "\0" in target:
        return NUL
    try:
        # JSON can escape lone surrogates, which neither tokenizers nor Arrow accept
        (source + target).encode()
    except UnicodeEncodeError:
        return NOT_UTF8
    return None


def select_texts(row: Mapping[str, Any], pair: LanguagePair, columns: tuple[str, str] | None = None) -> Outcome:
    """Select the texts of a row by the conventions of data sets, or of the named columns."""
    if row.get("language_pair", str(pair)) != str(pair):
        return "other language pair"
    texts: Mapping[str, Any] = row
    if columns is None and isinstance(row.get("translation"), Mapping):
        texts, columns = row["translation"], (pair.source, pair.target)
    names = columns or next((names for names in _conventions(pair) if all(name in row for name in names)), None)
    if names is None or not all(name in texts for name in names):
        return MISSING_COLUMN
    source, target = (texts[name] for name in names)
    if not isinstance(source, str) or not isinstance(target, str):
        return "not text"
    return source, target


def _conventions(pair: LanguagePair) -> list[tuple[str, str]]:
    flores = (f"sentence_{flores_code(pair.source)}", f"sentence_{flores_code(pair.target)}")
    return [(pair.source, pair.target), flores, ("source", "target")]
