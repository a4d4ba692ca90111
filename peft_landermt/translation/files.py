"""Parallel corpora in text files: TSV, JSON Lines, Moses."""

from __future__ import annotations

import itertools
import json
import os
from collections.abc import Iterator

from ..errors import CorpusError
from ..language_pair import LanguagePair, parse_pair
from .corpus import MISSING_COLUMN, NOT_UTF8, Corpus, Outcome, collect_examples, select_texts
from .lines import read_lines

_END = object()


def read_tsv(path: str | os.PathLike[str], language_pair: str, columns: tuple[int, int] = (0, 1)) -> Corpus:
    r"""Read tab-separated text in UTF-8, or in UTF-16 or UTF-32 with a byte order mark (which Excel calls Unicode
    text), plain or, if the name ends in `.gz`, compressed.

    Only `\n` and `\r\n` end a row. There is no header line and no quoting: every character but the tab is text.

    Args:
        path: The file.
        language_pair: Direction of the examples, such as `en-de`.
        columns: Positions of the source and the target text, counted from 0.

    Raises:
        CorpusError: The file cannot be read, a line is longer than 4 MiB, a compressed file unpacks to more than
            64 MiB and 200 times its size, no row is usable, or `columns` are not two different positions.
        LanguagePairError: `language_pair` is malformed.
    """
    pair = parse_pair(language_pair)
    if (
        len(columns) != 2
        or not all(isinstance(column, int) for column in columns)
        or not 0 <= min(columns) < max(columns)
    ):
        raise CorpusError("columns", columns, "expected two different positions counted from 0, such as (0, 1).")
    return collect_examples(
        (_split_tsv(line, columns) for line in read_lines(path, "path")), pair, "path", os.fspath(path)
    )


def read_jsonl(path: str | os.PathLike[str], language_pair: str) -> Corpus:
    """Read JSON Lines, in the encodings and within the limits of [`read_tsv`].

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
    lines = read_lines(path, "path")
    head = list(itertools.islice(lines, 1))
    # skipping such lines one by one would keep the last row of an array, the only one without a comma
    if head and head[0] is not None and head[0].lstrip().startswith("["):
        raise CorpusError("path", os.fspath(path), "is a JSON array; write one object a line instead.")
    return collect_examples(
        (_parse_json(line, pair) for line in itertools.chain(head, lines)), pair, "path", os.fspath(path)
    )


def read_moses(source_path: str | os.PathLike[str], target_path: str | os.PathLike[str], language_pair: str) -> Corpus:
    r"""Read two line-aligned files, in the encodings and within the limits of [`read_tsv`].

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
    paths = (os.fspath(source_path), os.fspath(target_path))
    return collect_examples(_aligned(*paths), pair, "source_path, target_path", paths)


def _aligned(*paths: str) -> Iterator[Outcome]:
    counts = [0, 0]
    for lines in itertools.zip_longest(
        read_lines(paths[0], "source_path"), read_lines(paths[1], "target_path"), fillvalue=_END
    ):
        counts = [count + (line is not _END) for count, line in zip(counts, lines, strict=True)]
        source, target = lines
        if isinstance(source, str) and isinstance(target, str):
            yield source, target
        elif _END not in lines:
            yield NOT_UTF8
    if counts[0] != counts[1]:
        remedy = f"have {counts[0]} and {counts[1]} lines; line-aligned files have the same number."
        raise CorpusError("source_path, target_path", paths, remedy)


def _split_tsv(line: str | None, columns: tuple[int, int]) -> Outcome:
    if line is None:
        return NOT_UTF8
    if not line:
        return "empty line"
    fields = line.split("\t")
    return (fields[columns[0]], fields[columns[1]]) if len(fields) > max(columns) else MISSING_COLUMN


def _parse_json(line: str | None, pair: LanguagePair) -> Outcome:
    if line is None:
        return NOT_UTF8
    if not line.strip():
        return "empty line"
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        return "not JSON"
    return select_texts(row, pair) if isinstance(row, dict) else "not a JSON object"
