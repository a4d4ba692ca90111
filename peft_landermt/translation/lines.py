"""Lines of text files, by one rule for every reader: UTF-8 or marked UTF-16 or UTF-32, ended by LF or CR LF alone."""

from __future__ import annotations

import codecs
import gzip
import io
import os
import sys
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, BinaryIO

from ..errors import CorpusError

MAX_LINE_BYTES = 4 << 20
"""Longest line, unit of a translation memory or XML token, in bytes."""

MAX_EXPANSION = 200
"""How many times its size a compressed file may unpack to, where that is more than `ALWAYS_UNPACKED` bytes; text
packed by gzip is 3 to 20 times as long."""
ALWAYS_UNPACKED = 64 << 20

_MARKS = (  # UTF-32 first: its mark begins like that of UTF-16
    (codecs.BOM_UTF32_LE, "utf-32-le"),
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
    (codecs.BOM_UTF8, "utf-8"),
)


def read_text_lines(path: str | None) -> list[str]:
    """Read all lines of a text file, or of standard input, without their ends.

    Args:
        path: The file; None for standard input.

    Raises:
        CorpusError: The file cannot be read; a line is too long, is not UTF-8, or holds a NUL character.
    """
    if path is not None:
        lines = read_lines(path, "file")
    else:
        # as bytes: in text mode a lone carriage return would end a line, too
        stream = getattr(sys.stdin, "buffer", None) or io.BytesIO(sys.stdin.read().encode(errors="surrogateescape"))
        path, lines = "standard input", _lines(stream, "file", "standard input")
    texts = []
    for number, line in enumerate(lines, 1):
        if line is None or "\0" in line:
            problem = (
                "is not UTF-8" if line is None else "holds a NUL character, as text in UTF-16 without a mark does"
            )
            raise CorpusError("file", path, f"line {number} {problem}; convert the file to UTF-8.")
        texts.append(line)
    return texts


def read_lines(path: str | os.PathLike[str], field: str) -> Iterator[str | None]:
    """Read the lines of a file, unpacked if its name ends in `.gz`, without their ends; None for one that is not
    UTF-8.

    A byte order mark is no text; with that of UTF-16 or UTF-32, the file is read as such. Without one, such files are
    refused: next to every line end they have a NUL character.

    Args:
        path: The file.
        field: Name of the argument that `path` came from, for errors.

    Raises:
        CorpusError: The file cannot be read or unpacks to too much, or a line is too long, or begins or ends with a
            NUL character.
    """
    name = os.fspath(path)
    with opened(name, field) as file:
        yield from _lines(file, field, name)


@contextmanager
def opened(name: str, field: str) -> Iterator[BinaryIO]:
    """Open a file for reading bytes, unpacked if its name ends in `.gz`.

    Raises:
        CorpusError: For all that can go wrong with it.
    """
    try:
        packed = open(name, "rb")  # noqa: SIM115
    except FileNotFoundError as error:
        raise CorpusError(field, name, "there is no such file; check the path.") from error
    except (OSError, ValueError) as error:  # ValueError: a path with a NUL character
        raise CorpusError(field, name, f"cannot be read ({error}); name a file.") from error
    try:
        with packed:
            if name.endswith(".gz"):
                with gzip.GzipFile(fileobj=packed) as unpacked:
                    yield io.BufferedReader(_Unpacked(unpacked, packed, field, name))
            else:
                yield packed
    except (OSError, EOFError, zlib.error) as error:
        raise CorpusError(field, name, f"cannot be read ({error}); give an undamaged file.") from error


def _lines(file: Any, field: str, name: str) -> Iterator[str | None]:
    # binary, because text mode and str.splitlines also split at characters that occur inside sentences
    reader = _as_utf8(file, field, name)
    number = 0
    while line := reader.readline(MAX_LINE_BYTES + 1):
        number += 1
        if len(line) > MAX_LINE_BYTES:
            raise CorpusError(
                field, name, f"line {number} is longer than {MAX_LINE_BYTES >> 20} MiB; give one sentence a line."
            )
        line = line.removesuffix(b"\n").removesuffix(b"\r")
        if line.startswith(b"\0") or line.endswith(b"\0"):
            raise CorpusError(
                field,
                name,
                f"line {number} begins or ends with a NUL character, as in UTF-16 without a byte order mark; convert "
                "the file to UTF-8.",
            )
        try:
            yield line.decode("utf-8")
        except UnicodeDecodeError:
            yield None


def _as_utf8(file: Any, field: str, name: str) -> Any:
    """Return the file without its byte order mark, in UTF-8."""
    reader = file if hasattr(file, "peek") else io.BufferedReader(file)
    head = reader.peek(4)[:4]
    mark, encoding = next(((mark, encoding) for mark, encoding in _MARKS if head.startswith(mark)), (b"", "utf-8"))
    reader.read(len(mark))
    return reader if encoding == "utf-8" else io.BufferedReader(_Transcoded(reader, encoding, field, name))


class _Pieces(io.RawIOBase):
    """A stream of the pieces that `_next` gives, until it gives none."""

    def __init__(self) -> None:
        self._left = b""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        if not self._left:
            self._left = self._next()
        count = min(len(buffer), len(self._left))
        buffer[:count], self._left = self._left[:count], self._left[count:]
        return count

    def _next(self) -> bytes:
        raise NotImplementedError


class _Transcoded(_Pieces):
    """UTF-16 or UTF-32 as UTF-8; a lone surrogate becomes bytes that are not, so that its row is left out."""

    def __init__(self, file: Any, encoding: str, field: str, name: str) -> None:
        super().__init__()
        self._file, self._field, self._name = file, field, name
        self._decoder = codecs.getincrementaldecoder(encoding)("surrogatepass")

    def _next(self) -> bytes:
        text = ""
        while not text:
            piece = self._file.read(io.DEFAULT_BUFFER_SIZE)
            try:
                text = self._decoder.decode(piece, final=not piece)
            except UnicodeDecodeError as error:
                remedy = f"is not in the encoding that its byte order mark says ({error}); convert it to UTF-8."
                raise CorpusError(self._field, self._name, remedy) from error
            if not piece:
                break
        return text.encode("utf-8", "surrogatepass")


class _Unpacked(_Pieces):
    """What a compressed file unpacks to, as long as that is in proportion."""

    def __init__(self, unpacked: gzip.GzipFile, packed: BinaryIO, field: str, name: str) -> None:
        super().__init__()
        self._unpacked, self._packed, self._field, self._name = unpacked, packed, field, name

    def _next(self) -> bytes:
        piece = self._unpacked.read(io.DEFAULT_BUFFER_SIZE)
        if self._unpacked.tell() > max(ALWAYS_UNPACKED, MAX_EXPANSION * self._packed.tell()):
            raise CorpusError(
                self._field,
                self._name,
                f"unpacks to more than {MAX_EXPANSION} times its size, as text does not; unpack it yourself.",
            )
        return piece
