"""What `landermt train` shows while it trains: a bar with the loss, and a line for every evaluation."""

from __future__ import annotations

import sys
from typing import Any

from tqdm.auto import tqdm
from transformers import TrainerCallback

from ..progress import progress_bar

_PAIR = "eval_loss_"


class ProgressByPair(TrainerCallback):
    """A bar on standard error, and on standard output the losses of every evaluation by pair.

    Args:
        shown: Whether to show anything.
    """

    def __init__(self, shown: bool) -> None:
        self.shown = shown
        self.bar: Any = None

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Make the bar; a training that is resumed begins where it was left."""
        self.bar = progress_bar(state.max_steps, "training", self.shown)
        self.bar.update(state.global_step)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Move the bar."""
        self.bar.update(state.global_step - self.bar.n)

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **kwargs: Any) -> None:
        """Show the loss in the bar."""
        if logs and "loss" in logs:
            self.bar.set_postfix(loss=f"{float(logs['loss']):.4f}", refresh=False)

    def on_evaluate(
        self, args: Any, state: Any, control: Any, metrics: dict[str, float] | None = None, **kwargs: Any
    ) -> None:
        """Print the loss of held-out rows, of all and of every pair."""
        found = metrics or {}
        pairs = [f"{key.removeprefix(_PAIR)} {loss:.4f}" for key, loss in found.items() if key.startswith(_PAIR)]
        if self.shown and "eval_loss" in found:
            line = f"step {state.global_step}: held-out loss {found['eval_loss']:.4f} ({', '.join(pairs)})"
            tqdm.write(line, file=sys.stdout)

    def close(self) -> None:
        """Close the bar; also of a training that failed, whose callbacks are not told."""
        if self.bar is not None:
            self.bar.close()
