"""Files that are written whole or not at all: until a new one is whole, what was there stays as it is."""

from __future__ import annotations

import os
import secrets
import shutil
import sys
import tempfile
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

if sys.platform != "win32":
    import fcntl

SAVING = ".saving-"
"""What the names of folders begin with that hold new files until they are whole."""


@contextmanager
def written_whole(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Give a path to write to, whose file takes the place of `path` when the block ends without an error.

    Missing folders are made. A link is replaced, not followed: a folder of a stranger may have one that leads out of
    it. A pipe or device is written to as it is.

    Raises:
        OSError: The file cannot be written, because the disk is full, for example; `path` is as it was.
    """
    target = Path(os.path.abspath(path))
    if (target.exists() and not target.is_file()) or target.is_relative_to("/dev"):
        yield target
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(f".{target.name[:200]}.{secrets.token_hex(4)}.partial")
    try:
        partial.touch()
        usual = partial.stat().st_mode
        yield partial
        os.chmod(partial, usual)  # safetensors makes files that only their owner may read
        _put_in_place(partial, target)
    except SafetensorError as error:
        raise OSError(f"{target} cannot be written: {error}") from error
    finally:
        partial.unlink(missing_ok=True)


def _put_in_place(partial: Path, target: Path) -> None:
    with open(partial, "rb+") as file:
        os.fsync(file.fileno())  # else a crash may keep the new name and lose what was written
    os.replace(partial, target)


def write_text(path: str | os.PathLike[str], text: str, errors: str = "strict") -> None:
    """Write a UTF-8 text file, whole or not at all; `errors` as in `open`."""
    with written_whole(path) as partial:
        partial.write_text(text, encoding="utf-8", errors=errors)


@contextmanager
def new_folder(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Give a folder to fill, which becomes `path`, so far absent or empty, when the block ends without an error.

    Raises:
        OSError: `path` is there and not empty, or the folder cannot be written; `path` is as it was.
    """
    target = Path(os.path.abspath(path))
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(f".{target.name[:200]}.{secrets.token_hex(4)}.partial")
    partial.mkdir()
    try:
        (partial / ".usual").touch()
        usual = (partial / ".usual").stat().st_mode
        (partial / ".usual").unlink()
        yield partial
        for file in filter(Path.is_file, partial.rglob("*")):
            os.chmod(file, usual)  # safetensors makes files that only their owner may read
        if target.exists():
            target.rmdir()
        os.rename(partial, target)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


@contextmanager
def files_in_place(path: str | os.PathLike[str], kept: Collection[str] = ()) -> Iterator[Path]:
    """A folder to fill, whose files take the places of those of the same names in `path` when the block ends without
    an error: one after the other, but no two processes at once.

    Args:
        path: The folder; made if it does not exist. What else is in it stays.
        kept: Files, by their paths in the folder, that are not replaced where they are there.

    Raises:
        OSError: The files cannot be written; `path` is as it was.
    """
    target = Path(os.path.abspath(path))
    target.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target, prefix=SAVING) as folder:
        try:
            yield Path(folder)
        except SafetensorError as error:
            raise OSError(f"{target} cannot be written: {error}") from error
        written = sorted(file.relative_to(folder) for file in Path(folder).rglob("*") if file.is_file())
        with _locked(target):
            for file in written:
                if str(file) not in kept or not os.path.lexists(target / file):
                    (target / file).parent.mkdir(parents=True, exist_ok=True)
                    _put_in_place(Path(folder, file), target / file)


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Wait until no other process, or thread, is in such a block for the same folder."""
    if sys.platform == "win32":  # where a folder cannot be opened
        yield
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)
