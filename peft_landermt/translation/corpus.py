"""Parallel corpora: readers for TSV, JSON Lines, Moses files and data sets."""

from __future__ import annotations

import codecs
import gzip
import itertools
import json
import os
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from datasets import Dataset, DatasetDict, Features, Value, load_dataset, load_from_disk
from datasets.exceptions import DatasetsError

from ..errors import CorpusError
from ..language_pair import LanguagePair, parse_pair

_NOT_UTF8 = "not UTF-8"
_MISSING_COLUMN = "missing column"

_Outcome = tuple[str, str] | str
"""What a row gives: its source and target, or the reason why it is skipped."""

_FORMS = (
    "a corpus is *.tsv[.gz], *.jsonl[.gz], *.json[.gz], the prefix of two line-aligned files (corpus for corpus.en "
    "and corpus.de), or the folder or Hub id of a data set"
)


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


def read_tsv(path: str | os.PathLike[str], language_pair: str, columns: tuple[int, int] = (0, 1)) -> Corpus:
    r"""Read tab-separated UTF-8 text, plain or, if the name ends in `.gz`, compressed.

    Only `\n` and `\r\n` end a row. There is no header line and no quoting: every character but the tab is text.

    Args:
        path: The file.
        language_pair: Direction of the examples, such as `en-de`.
        columns: Positions of the source and the target text, counted from 0.

    Raises:
        CorpusError: The file cannot be read or has no usable row, or `columns` are not two different positions.
        LanguagePairError: `language_pair` is malformed.
    """
    pair = parse_pair(language_pair)
    if len(columns) != 2 or min(columns) < 0 or columns[0] == columns[1]:
        raise CorpusError("columns", columns, "expected two different positions counted from 0, such as (0, 1).")
    return _collect((_split_tsv(line, columns) for line in _read_lines(path, "path")), pair, "path", os.fspath(path))


def read_jsonl(path: str | os.PathLike[str], language_pair: str) -> Corpus:
    """Read JSON Lines in UTF-8, plain or, if the name ends in `.gz`, compressed.

    The text of a row is taken from the first of these that it has, here for `en-de`:
    `{"translation": {"en": ..., "de": ...}}`, `{"en": ..., "de": ...}`, `{"source": ..., "target": ...}`.
    A row that also has a `language_pair` is skipped unless that is `language_pair`.

    Args:
        path: The file.
        language_pair: Direction of the examples, such as `en-de`.

    Raises:
        CorpusError: The file cannot be read, has no usable row, or is a JSON array instead of JSON Lines.
        LanguagePairError: `language_pair` is malformed.
    """
    pair = parse_pair(language_pair)
    lines = _read_lines(path, "path")
    head = list(itertools.islice(lines, 1))
    # skipping such lines one by one would keep the last row of an array, the only one without a comma
    if head and head[0] is not None and head[0].lstrip().startswith("["):
        raise CorpusError("path", os.fspath(path), "is a JSON array; write one object a line instead.")
    return _collect((_parse_json(line, pair) for line in itertools.chain(head, lines)), pair, "path", os.fspath(path))


def read_moses(source_path: str | os.PathLike[str], target_path: str | os.PathLike[str], language_pair: str) -> Corpus:
    r"""Read two line-aligned UTF-8 files, plain or, if the name ends in `.gz`, compressed.

    Only `\n` and `\r\n` end a line. A pair of lines is skipped if either is not UTF-8.

    Args:
        source_path: Sentences, one a line.
        target_path: Their translations, one a line.
        language_pair: Direction of the examples, such as `en-de`.

    Raises:
        CorpusError: A file cannot be read, the numbers of lines differ, or no pair of lines is usable.
        LanguagePairError: `language_pair` is malformed.
    """
    pair = parse_pair(language_pair)
    sources, targets = list(_read_lines(source_path, "source_path")), list(_read_lines(target_path, "target_path"))
    paths = (os.fspath(source_path), os.fspath(target_path))
    if len(sources) != len(targets):
        remedy = f"have {len(sources)} and {len(targets)} lines; line-aligned files have the same number."
        raise CorpusError("source_path, target_path", paths, remedy)
    outcomes: Iterator[_Outcome] = (
        _NOT_UTF8 if source is None or target is None else (source, target)
        for source, target in zip(sources, targets, strict=True)
    )
    return _collect(outcomes, pair, "source_path, target_path", paths)


def read_dataset(
    name_or_path: str | os.PathLike[str],
    language_pair: str,
    split: str = "train",
    columns: tuple[str, str] | None = None,
    config_name: str | None = None,
    streaming: bool = False,
) -> Corpus:
    """Read a data set from the Hub, a folder that `datasets` can load, or one that `save_to_disk` wrote.

    Rows have the forms of [`read_jsonl`], unless `columns` names the text; `language_pair` columns count either way.

    Args:
        name_or_path: Hub id or folder.
        language_pair: Direction of the examples, such as `en-de`.
        split: Which split to read. A folder of `save_to_disk` may hold one data set without splits; that is read
            whole.
        columns: Names of the source and the target column.
        config_name: Configuration of the data set, for example `de-en`; unused for folders of `save_to_disk`.
        streaming: Read while downloading, without a copy in the cache; unused for folders of `save_to_disk`.

    Raises:
        CorpusError: The data set cannot be loaded, lacks the split or the columns, or has no usable row.
        LanguagePairError: `language_pair` is malformed.
    """
    pair = parse_pair(language_pair)
    name = os.fspath(name_or_path)
    rows = _load_rows(name, split, config_name, streaming)
    head = list(itertools.islice(rows, 1))
    # all rows of a data set have the same columns, so that what the first lacks, all lack
    if head and _select_texts(head[0], pair, columns) == _MISSING_COLUMN:
        found = [f"{key} ({', '.join(v)})" if isinstance(v, Mapping) else key for key, v in head[0].items()]
        remedy = f"{name} has no such text for {pair}; give two of its columns: {', '.join(found)}."
        raise CorpusError("columns", columns, remedy)
    outcomes = (_select_texts(row, pair, columns) for row in itertools.chain(head, rows))
    return _collect(outcomes, pair, "name_or_path", name)


def read_corpus(path: str | os.PathLike[str], language_pair: str, split: str = "train") -> Corpus:
    """Read a corpus with the reader for its form.

    Args:
        path: `*.tsv` ([`read_tsv`]); `*.jsonl` or `*.json` ([`read_jsonl`]), each also with `.gz`; for `en-de`, the
            prefix of `prefix.en` and `prefix.de` ([`read_moses`]); else a data set ([`read_dataset`]).
        language_pair: Direction of the examples, such as `en-de`.
        split: Split of a data set; files have none.

    Raises:
        CorpusError: The corpus has none of these forms, or its reader refuses it.
        LanguagePairError: `language_pair` is malformed.
    """
    pair, name = parse_pair(language_pair), os.fspath(path)
    uncompressed = name.removesuffix(".gz")
    if uncompressed.endswith(".tsv"):
        return read_tsv(name, language_pair)
    if uncompressed.endswith((".jsonl", ".json")):
        return read_jsonl(name, language_pair)
    source_path, target_path = (f"{name}.{language}" for language in pair)
    # one file is enough to tell what is meant; the reader then names the other as missing
    if os.path.isfile(source_path) or os.path.isfile(target_path):
        return read_moses(source_path, target_path, language_pair)
    if os.path.isfile(name):
        raise CorpusError("path", name, f"{_FORMS}.")
    return read_dataset(name, language_pair, split)


def _read_lines(path: str | os.PathLike[str], field_name: str) -> Iterator[str | None]:
    """Lines without their ends and without a byte order mark; None for a line that is not UTF-8."""
    name = os.fspath(path)
    try:
        # binary, because text mode and str.splitlines also split at characters that occur inside sentences
        with gzip.open(name) if name.endswith(".gz") else open(name, "rb") as file:
            for number, line in enumerate(file):
                content = line.removeprefix(codecs.BOM_UTF8) if number == 0 else line
                try:
                    yield content.removesuffix(b"\n").removesuffix(b"\r").decode("utf-8")
                except UnicodeDecodeError:
                    yield None
    except FileNotFoundError as error:
        raise CorpusError(field_name, name, "there is no such file; check the path.") from error
    except (OSError, EOFError, zlib.error) as error:
        raise CorpusError(field_name, name, f"cannot be read ({error}); give an undamaged file.") from error


def _split_tsv(line: str | None, columns: tuple[int, int]) -> _Outcome:
    if line is None:
        return _NOT_UTF8
    if not line:
        return "empty line"
    fields = line.split("\t")
    return (fields[columns[0]], fields[columns[1]]) if len(fields) > max(columns) else _MISSING_COLUMN


def _parse_json(line: str | None, pair: LanguagePair) -> _Outcome:
    if line is None:
        return _NOT_UTF8
    if not line.strip():
        return "empty line"
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        return "not JSON"
    return _select_texts(row, pair) if isinstance(row, dict) else "not a JSON object"


def _select_texts(row: Mapping[str, Any], pair: LanguagePair, columns: tuple[str, str] | None = None) -> _Outcome:
    if row.get("language_pair", str(pair)) != str(pair):
        return "other language pair"
    translation = row.get("translation")
    if columns is not None:
        texts, names = row, columns
    elif isinstance(translation, Mapping):
        texts, names = translation, pair
    else:
        texts, names = row, pair if pair.source in row and pair.target in row else ("source", "target")
    if not all(name in texts for name in names):
        return _MISSING_COLUMN
    source, target = (texts[name] for name in names)
    if not isinstance(source, str) or not isinstance(target, str):
        return "not text"
    try:
        # JSON can escape lone surrogates, which neither tokenizers nor Arrow accept
        (source + target).encode()
    except UnicodeEncodeError:
        return _NOT_UTF8
    return source, target


def _load_rows(name: str, split: str, config_name: str | None, streaming: bool) -> Iterator[Mapping[str, Any]]:
    try:
        if any(os.path.isfile(os.path.join(name, file)) for file in ("state.json", "dataset_dict.json")):
            saved = load_from_disk(name)
            if isinstance(saved, DatasetDict) and split not in saved:
                raise ValueError(f"it has the splits {', '.join(saved)}")
            yield from saved[split] if isinstance(saved, DatasetDict) else saved
        else:
            yield from load_dataset(name, config_name, split=split, streaming=streaming)
    # LookupError: how load_from_disk fails on a data set that was saved without rows
    except (OSError, ValueError, RuntimeError, LookupError, DatasetsError) as error:
        raise CorpusError("name_or_path, split", (name, split), f"cannot be loaded ({error}); {_FORMS}.") from error


def _collect(outcomes: Iterable[_Outcome], pair: LanguagePair, field_name: str, value: Any) -> Corpus:
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
