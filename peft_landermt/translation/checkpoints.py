"""Checkpoints that training can resume from exactly."""

from __future__ import annotations

from typing import Any

from transformers import TrainerCallback


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
