"""Parallel corpora: translation examples, and what reading them left out."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from datasets import Dataset, Features, Value

from ..errors import CorpusError
from ..language_pair import LanguagePair, flores_code

NOT_UTF8 = "not UTF-8"
MISSING_COLUMN = "missing column"

Outcome = tuple[str, str] | str
"""What a row gives: its source and target, or the reason why it is skipped."""


@dataclass(frozen=True)
class TranslationExample:
    """A sentence, its translation, and the direction between them, such as `en-de`."""

    source: str
    target: str
    language_pair: str

    def to_row(self) -> dict[str, str]:
        """The example as a row for [`TranslationCollator`]."""
        return {"source": self.source, "target": self.target, "language_pair": self.language_pair}


@dataclass
class Corpus:
    """Translation examples in the order of their file, and what reading left out.

    Attributes:
        examples: The usable rows. Their text is as in the file, and may be empty; see [`clean`].
        skipped: Number of rows left out, by reason: "not UTF-8", "empty line", "missing column", "not JSON",
            "not a JSON object", "not text" (null, a number), "other language pair".
    """

    examples: list[TranslationExample]
    skipped: Counter[str] = field(default_factory=Counter)

    def __len__(self) -> int:
        return len(self.examples)

    def __iter__(self) -> Iterator[TranslationExample]:
        return iter(self.examples)

    def to_dataset(self) -> Dataset:
        """The examples as a data set with the text columns `source`, `target` and `language_pair`."""
        names = ("source", "target", "language_pair")
        # without explicit features, the columns of an empty corpus would have no type
        return Dataset.from_dict(
            {name: [getattr(example, name) for example in self.examples] for name in names},
            features=Features({name: Value("string") for name in names}),
        )


def collect_examples(outcomes: Iterable[Outcome], pair: LanguagePair, field_name: str, value: Any) -> Corpus:
    """The rows that give an example, and how many do not by reason; CorpusError, of the named field, if none does."""
    corpus, language_pair = Corpus([]), str(pair)
    for outcome in outcomes:
        if isinstance(outcome, str):
            corpus.skipped[outcome] += 1
        else:
            corpus.examples.append(TranslationExample(*outcome, language_pair))
    if not corpus.examples:
        skipped = ", ".join(f"{reason} {count}" for reason, count in corpus.skipped.items()) or "none; it is empty"
        raise CorpusError(field_name, value, f"has no usable row for {pair} (skipped: {skipped}); check its form.")
    return corpus


def select_texts(row: Mapping[str, Any], pair: LanguagePair, columns: tuple[str, str] | None = None) -> Outcome:
    """The texts of a row by the conventions of data sets, or of the named columns."""
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
    try:
        # JSON can escape lone surrogates, which neither tokenizers nor Arrow accept
        (source + target).encode()
    except UnicodeEncodeError:
        return NOT_UTF8
    return source, target


def _conventions(pair: LanguagePair) -> list[tuple[str, str]]:
    flores = (f"sentence_{flores_code(pair.source)}", f"sentence_{flores_code(pair.target)}")
    return [(pair.source, pair.target), flores, ("source", "target")]
