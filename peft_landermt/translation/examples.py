"""Translation examples: a list of them, or, beyond a few megabytes, an Arrow file that is mapped into memory."""

from __future__ import annotations

import atexit
import itertools
import os
import shutil
import tempfile
import uuid
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cache, cached_property
from typing import overload

import pyarrow as pa
from datasets import Dataset, Features, Value

from ..errors import CorpusError

COLUMNS = ("source", "target", "language_pair")
FEATURES = Features({name: Value("string") for name in COLUMNS})

IN_MEMORY = 4_000_000
"""Characters up to which examples stay a list; also how many, about, are written or read at once."""
_ROW = 100
"""Characters that an example counts for itself; a list of short ones is mostly that."""


@dataclass(frozen=True, slots=True)
class TranslationExample:
    """A sentence, its translation, and the direction between them, such as `en-de`."""

    source: str
    target: str
    language_pair: str

    def to_row(self) -> dict[str, str]:
        """Return the example as a row for [`TranslationCollator`]."""
        return {"source": self.source, "target": self.target, "language_pair": self.language_pair}


class StoredExamples(Sequence[TranslationExample]):
    """Examples in an Arrow file, which stays until the process ends.

    Args:
        path: The file.
    """

    def __init__(self, path: str) -> None:
        self.path = path

    @cached_property
    def dataset(self) -> Dataset:
        """Return the file as a data set; rows are read from it when they are asked for."""
        return Dataset.from_file(self.path)

    def __len__(self) -> int:
        return len(self.dataset)

    def __iter__(self) -> Iterator[TranslationExample]:
        # read, not mapped: a whole file that is mapped counts as memory of the process
        with pa.OSFile(self.path) as file, pa.ipc.open_stream(file) as batches:
            for batch in batches:
                yield from map(TranslationExample, *(column.to_pylist() for column in batch.columns))

    @overload
    def __getitem__(self, index: int) -> TranslationExample: ...
    @overload
    def __getitem__(self, index: slice) -> list[TranslationExample]: ...
    def __getitem__(self, index: int | slice) -> TranslationExample | list[TranslationExample]:
        rows = self.dataset[index]
        if isinstance(index, slice):
            return list(map(TranslationExample, *(rows[name] for name in COLUMNS)))
        return TranslationExample(**rows)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Sequence):
            return NotImplemented
        return len(self) == len(other) and all(map(TranslationExample.__eq__, self, other))

    def __repr__(self) -> str:
        return f"<{len(self)} examples in {self.path}>"


def store(examples: Iterable[TranslationExample]) -> Sequence[TranslationExample]:
    """Keep examples as a list, or, where they are long, in a file.

    Raises:
        CorpusError: The file cannot be written, or a text holds lone surrogates.
    """
    chunks = _chunks(examples)
    first, second = next(chunks, []), next(chunks, None)
    if second is None:
        return first
    path = None
    try:
        path = os.path.join(_folder(), f"{uuid.uuid4()}.arrow")
        with open(path, "xb") as file, pa.ipc.new_stream(file, FEATURES.arrow_schema) as writer:
            for chunk in itertools.chain([first, second], chunks):
                columns = [pa.array([getattr(example, name) for example in chunk], pa.string()) for name in COLUMNS]
                writer.write_batch(pa.record_batch(columns, schema=FEATURES.arrow_schema))
    except (OSError, UnicodeEncodeError) as error:
        remove(path)
        remedy = f"cannot be kept on disk ({error}); the variable TMPDIR names the folder for it."
        raise CorpusError("corpus", path or tempfile.gettempdir(), remedy) from error
    except BaseException:
        remove(path)
        raise
    return StoredExamples(path)


def remove(path: str | None) -> None:
    """Delete a file of examples that nobody has seen."""
    if path is not None:
        with suppress(OSError):  # it is deleted with its folder at the end, if not now
            os.unlink(path)


def _chunks(examples: Iterable[TranslationExample]) -> Iterator[list[TranslationExample]]:
    chunk: list[TranslationExample] = []
    characters = 0
    for example in examples:
        chunk.append(example)
        characters += len(example.source) + len(example.target) + _ROW
        if characters > IN_MEMORY:
            yield chunk
            chunk, characters = [], 0
    if chunk:
        yield chunk


@cache
def _folder() -> str:
    """Return a folder for this process's files."""
    folder = tempfile.mkdtemp(prefix="landermt-corpora-")
    atexit.register(_remove_folder, folder, os.getpid())
    return folder


def _remove_folder(folder: str, owner: int) -> None:
    if os.getpid() == owner:  # not in a process that was forked from it
        shutil.rmtree(folder, ignore_errors=True)
