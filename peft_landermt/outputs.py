"""Files that are written whole or not at all: until a new one is whole, what was there stays as it is."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError


@contextmanager
def written_whole(path: str | os.PathLike[str]) -> Iterator[Path]:
    """A path to write to, whose file takes the place of `path` when the block ends without an error.

    Missing folders are made; a link is followed. What is no regular file, such as a pipe, is written to as it is.

    Raises:
        OSError: The file cannot be written, because the disk is full, for example; `path` is as it was.
    """
    target = Path(os.path.realpath(path))
    if target.exists() and not target.is_file():
        yield target
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(f".{target.name[:200]}.{secrets.token_hex(4)}.partial")
    try:
        yield partial
        with open(partial, "rb+") as file:
            os.fsync(file.fileno())  # else a crash may keep the new name and lose what was written
        os.replace(partial, target)
    except SafetensorError as error:
        raise OSError(f"{target} cannot be written: {error}") from error
    finally:
        partial.unlink(missing_ok=True)


def write_text(path: str | os.PathLike[str], text: str, errors: str = "strict") -> None:
    """Write a UTF-8 text file, whole or not at all; `errors` as in `open`."""
    with written_whole(path) as partial:
        partial.write_text(text, encoding="utf-8", errors=errors)
