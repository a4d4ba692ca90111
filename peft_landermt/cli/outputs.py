"""What commands may write: never what they read, and what is there only with `--overwrite`."""

from __future__ import annotations

import argparse
import glob
import json
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from ..errors import ConfigError
from ..outputs import write_text

ADAPTER = ("adapter_config.json", "adapter_model.safetensors")
"""Files of an adapter folder; its card is not among them, because the text of its owner is kept."""

_INPUTS = (
    "model",
    "adapter",
    "adapters",
    "neuron_map",
    "extends",
    "data",
    "eval_data",
    "baseline",
    "sentences",
    "input",
    "config",
    "path",
)
"""Options of all commands that name what is read."""


def add_overwrite_option(parser: argparse.ArgumentParser) -> None:
    """Add `--overwrite`."""
    parser.add_argument("--overwrite", action="store_true", help="replace what is there at --output")


def claim(options: argparse.Namespace, outputs: Iterable[str | Path], replaces: bool = False) -> None:
    """Check what a command is about to write, before it does any work.

    Args:
        options: Of the command.
        outputs: Every file that it will write.
        replaces: Whether what is there may be replaced without `--overwrite`.

    Raises:
        ConfigError: A file is there already, is one that the command reads, is a folder, or lies in none.
    """
    inputs = list(_inputs(options))
    for output in map(Path, outputs):
        if output.is_dir():
            raise ConfigError("--output", str(output), "is a folder; name a file.")
        parent = next(folder for folder in Path(os.path.abspath(output)).parents if folder.exists())
        if not parent.is_dir() or not os.access(parent, os.W_OK):
            raise ConfigError("--output", str(output), f"cannot be written: {parent} is no folder for it.")
        if output.exists() and any(output.samefile(path) for path in inputs):
            raise ConfigError("--output", str(output), "is what the command reads; name another.")
        if (output.is_file() or output.is_symlink()) and not (replaces or options.overwrite):
            raise ConfigError("--output", str(output), "is there already; name another, or add --overwrite.")


def claim_folder(options: argparse.Namespace, names: Iterable[str], replaces: bool = False) -> None:
    """Check a folder at `--output` that a command is about to write to, as `claim` does.

    Args:
        options: Of the command.
        names: Every file that it will write, under the folder; `*` stands for anything.
        replaces: As for `claim`.

    Raises:
        ConfigError: As for `claim`; or the folder is a file, or itself what the command reads.
    """
    folder = Path(options.output)
    if folder.exists() and not folder.is_dir():
        raise ConfigError("--output", options.output, "is a file; name a folder.")
    if folder.exists() and any(path.is_dir() and folder.samefile(path) for path in _inputs(options)):
        raise ConfigError("--output", options.output, "is what the command reads; name another.")
    for name in names:
        there = sorted(folder.glob(name))
        if there and there[0].is_dir() and not (replaces or options.overwrite):
            raise ConfigError("--output", str(there[0]), "is there already; name another, or add --overwrite.")
        claim(options, [path for path in there or [folder / name] if not path.is_dir()], replaces)


def _inputs(options: argparse.Namespace) -> Iterator[Path]:
    """List files and folders that the command reads, and the files in these folders."""
    for name in _INPUTS:
        value = getattr(options, name, None)
        for item in value if isinstance(value, list) else [] if value is None else [value]:
            text = str(item).partition("=")[2] if name in ("data", "eval_data", "sentences") else str(item)
            path = Path(text)
            if path.exists():
                yield path
            else:  # corpus, for corpus.en and corpus.de
                yield from map(Path, glob.glob(f"{glob.escape(text)}.*"))
            if path.is_dir() and name != "path":  # a report lies in the folder that it tells of
                yield from path.iterdir()


def write_json(path: str | Path, value: Any) -> None:
    """Write a value as JSON that people can read."""
    write_text(path, json.dumps(value, ensure_ascii=False, indent=2) + "\n")
