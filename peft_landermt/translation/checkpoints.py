"""Checkpoints of a training run: which ones are whole."""

from __future__ import annotations

import json
import os
import re
import shutil
import zipfile
from pathlib import Path

from safetensors import SafetensorError, safe_open
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

_NEEDED = (
    ("optimizer*", "global_step*"),
    ("scheduler.pt", "global_step*"),
    ("rng_state*",),
    ("adapter_model*", "model*.safetensors", "pytorch_model*", "global_step*"),
)
"""What training goes on from, each under one of some names; `global_step*` is DeepSpeed's folder."""


def last_whole_checkpoint(folder: str | os.PathLike[str]) -> str | None:
    """Find the newest checkpoint below a training run's folder that was written to its end; None without one."""
    whole = [path for step, path in _checkpoints(folder) if is_whole(path, step)]
    return str(whole[-1]) if whole else None


def is_whole(checkpoint: Path, step: int) -> bool:
    """Tell whether a checkpoint was written to its end: nothing that training goes on from is missing or cut, and the
    state of its step, which is written last, is there."""
    try:
        state = json.loads((checkpoint / TRAINER_STATE_NAME).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    if not isinstance(state, dict) or state.get("global_step") != step:
        return False
    complete = all(any(any(checkpoint.glob(name)) for name in names) for names in _NEEDED)
    return complete and all(_is_readable(path) for path in checkpoint.rglob("*") if path.is_file())


def remove_checkpoints(folder: str | os.PathLike[str], step: int | None = None) -> None:
    """Remove the checkpoint of a step, or all checkpoints, below a training run's folder."""
    for found, path in _checkpoints(folder):
        if step in (None, found):
            shutil.rmtree(path)


def _checkpoints(folder: str | os.PathLike[str]) -> list[tuple[int, Path]]:
    """Steps and folders, in the order of the steps."""
    named = ((re.fullmatch(rf"{PREFIX_CHECKPOINT_DIR}-(\d+)", path.name), path) for path in Path(folder).glob("*"))
    return sorted((int(match[1]), path) for match, path in named if match and path.is_dir())


def _is_readable(path: Path) -> bool:
    """Whether a file of tensors has its end; other files are not looked into."""
    if path.suffix == ".safetensors":
        try:
            with safe_open(path, framework="pt"):
                return True
        except (SafetensorError, OSError):
            return False
    return path.suffix not in (".pt", ".pth", ".bin") or zipfile.is_zipfile(path)
