"""Checkpoints of a training run: that they are exact, and which ones are whole."""

from __future__ import annotations

import json
import os
import re
import shutil
import zipfile
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from transformers import TrainerCallback
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

_NEEDED = (
    ("optimizer*", "global_step*"),
    ("scheduler.pt", "global_step*"),
    ("rng_state*",),
    ("adapter_model*", "model*.safetensors", "pytorch_model*", "global_step*"),
)
"""What training goes on from, each under one of some names; `global_step*` is DeepSpeed's folder."""


class FullPrecisionCheckpoints(TrainerCallback):
    """Saves adapters in float32 while a trainer trains, whatever their configs ask for.

    Deltas are trained in float32, and saved in the type of the base weights unless `save_dtype` says otherwise; over a
    bfloat16 base, a checkpoint would be rounded, and so would be what training resumes from, or the best checkpoint
    that is loaded at its end. [`LanderTrainer`] has this; give it to any other trainer of transformers or TRL:
    `callbacks=[FullPrecisionCheckpoints()]`. Afterwards the adapter is saved as its config asks for again.
    """

    def __init__(self) -> None:
        self._wanted: list[tuple[Any, Any]] = []

    def on_train_begin(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        """Ask for float32."""
        self._restore()
        configs = [config for config in getattr(model, "peft_config", {}).values() if hasattr(config, "save_dtype")]
        self._wanted = [(config, config.save_dtype) for config in configs]
        for config in configs:
            config.save_dtype = "fp32"

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Ask for what was asked for before."""
        self._restore()

    def _restore(self) -> None:
        for config, dtype in self._wanted:
            config.save_dtype = dtype
        self._wanted = []


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
    """Return steps and folders, in the order of the steps."""
    named = ((re.fullmatch(rf"{PREFIX_CHECKPOINT_DIR}-(\d+)", path.name), path) for path in Path(folder).glob("*"))
    return sorted((int(match[1]), path) for match, path in named if match and path.is_dir())


def _is_readable(path: Path) -> bool:
    """Tell whether a file of tensors has its end; other files are not looked into."""
    if path.suffix == ".safetensors":
        try:
            with safe_open(path, framework="pt"):
                return True
        except (SafetensorError, OSError):
            return False
    return path.suffix not in (".pt", ".pth", ".bin") or zipfile.is_zipfile(path)
