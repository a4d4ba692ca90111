"""Parallel corpora in files: TSV, JSON Lines, Moses, TMX."""

from __future__ import annotations

import codecs
import gzip
import io
import itertools
import json
import os
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from xml.etree import ElementTree

from ..errors import CorpusError
from ..language_pair import LanguagePair, parse_pair
from .corpus import MISSING_COLUMN, NOT_UTF8, Corpus, Outcome, collect_examples, select_texts

_XML_LANG = "{http://www.w3.org/XML/1998/namespace}lang"


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
    return collect_examples(
        (_split_tsv(line, columns) for line in _read_lines(path, "path")), pair, "path", os.fspath(path)
    )


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
    return collect_examples(
        (_parse_json(line, pair) for line in itertools.chain(head, lines)), pair, "path", os.fspath(path)
    )


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
    outcomes: Iterator[Outcome] = (
        NOT_UTF8 if source is None or target is None else (source, target)
        for source, target in zip(sources, targets, strict=True)
    )
    return collect_examples(outcomes, pair, "source_path, target_path", paths)


def read_tmx(path: str | os.PathLike[str], language_pair: str) -> Corpus:
    """Read a translation memory (TMX 1.1 to 1.4), plain or, if the name ends in `.gz`, compressed.

    A unit's text is that of its variants (`tuv`) in the two languages, without inline codes (`bpt`, `ept`, `it`, `ph`,
    `ut`) but with what `hi` marks. A variant is found by its `xml:lang`, first by the whole code (`pt-BR` for
    `pt_BR`), then by the language alone (`en-US` for `en`). Units that lack a variant are skipped.

    Args:
        path: The file.
        language_pair: Direction of the examples, such as `en-de`.

    Raises:
        CorpusError: The file cannot be read, is not XML, or has no usable unit.
        LanguagePairError: `language_pair` is malformed.
    """
    pair = parse_pair(language_pair)
    return collect_examples(_tmx_units(path, pair), pair, "path", os.fspath(path))


def _tmx_units(path: str | os.PathLike[str], pair: LanguagePair) -> Iterator[Outcome]:
    name = os.fspath(path)
    with _opened(name, "path") as file:
        try:
            for _, element in ElementTree.iterparse(file):
                if element.tag == "tu":
                    source, target = (_tmx_text(element, language) for language in pair)
                    yield MISSING_COLUMN if source is None or target is None else (source, target)
                    element.clear()
        except ElementTree.ParseError as error:
            raise CorpusError("path", name, f"is not well-formed XML ({error}); export it again.") from error


def _tmx_text(unit: ElementTree.Element, language: str) -> str | None:
    variants: dict[str, ElementTree.Element] = {}
    for variant in unit.iter("tuv"):
        code = variant.get(_XML_LANG) or variant.get("lang") or ""
        variants.setdefault(code.replace("-", "_").lower(), variant)
    wanted = language.lower()
    alike = [code for code in variants if code.split("_")[0] == wanted.split("_")[0]]
    if not alike:
        return None
    segment = variants[wanted if wanted in variants else alike[0]].find("seg")
    return None if segment is None else "".join(_tmx_pieces(segment))


def _tmx_pieces(element: ElementTree.Element) -> Iterator[str]:
    yield element.text or ""
    for child in element:
        if child.tag == "hi":
            yield from _tmx_pieces(child)
        yield child.tail or ""


@contextmanager
def _opened(name: str, field_name: str) -> Iterator[gzip.GzipFile | io.BufferedReader]:
    """A file, unpacked if its name ends in `.gz`; CorpusError for all that can go wrong with it."""
    try:
        with gzip.open(name) if name.endswith(".gz") else open(name, "rb") as file:
            yield file
    except FileNotFoundError as error:
        raise CorpusError(field_name, name, "there is no such file; check the path.") from error
    except (OSError, EOFError, zlib.error) as error:
        raise CorpusError(field_name, name, f"cannot be read ({error}); give an undamaged file.") from error


def _read_lines(path: str | os.PathLike[str], field_name: str) -> Iterator[str | None]:
    """Lines without their ends and without a byte order mark; None for a line that is not UTF-8."""
    # binary, because text mode and str.splitlines also split at characters that occur inside sentences
    with _opened(os.fspath(path), field_name) as file:
        for number, line in enumerate(file):
            content = line.removeprefix(codecs.BOM_UTF8) if number == 0 else line
            try:
                yield content.removesuffix(b"\n").removesuffix(b"\r").decode("utf-8")
            except UnicodeDecodeError:
                yield None


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
