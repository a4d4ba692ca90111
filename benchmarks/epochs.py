"""The learning rate of every epoch of a training, what each one gives, and the weights after the best."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR
from transformers import TrainerCallback, get_cosine_schedule_with_warmup, set_seed


class EpochLosses(TrainerCallback):
    """What every epoch gives, and the trained weights after the best one.

    Every epoch begins with a seed of its own, so that the order of rows does not depend on what a method drew before.

    Args:
        seed: Of the run.
        measure: Gives the development loss, and that of every direction.
    """

    def __init__(self, seed: int, measure: Callable[[], tuple[float, dict[str, float]]]) -> None:
        self.seed, self.measure = seed, measure
        self.found: list[dict[str, Any]] = []
        self.best: dict[str, torch.Tensor] = {}

    def on_epoch_begin(self, *_args: Any, **_options: Any) -> None:
        set_seed(self.seed + len(self.found))
        self._start = time.perf_counter()

    def on_epoch_end(self, *_args: Any, model: nn.Module, **_options: Any) -> None:
        seconds = time.perf_counter() - self._start
        loss, losses = self.measure()
        print(f"epoch {len(self.found) + 1}: development loss {loss:.4f}, {seconds:.0f} s", flush=True)
        self.found.append({"development_loss": loss, "development_losses": losses, "seconds": seconds})
        if lowest(self.found) is self.found[-1]:
            trained = {name: weight for name, weight in model.named_parameters() if weight.requires_grad}
            self.best = {name: weight.detach().clone() for name, weight in trained.items()}


def cosine_by_epoch(optimizer: Optimizer, warmup: int, steps: int) -> LambdaLR:
    """transformers' warm-up and cosine to zero over the steps of one epoch, again in every one."""
    schedule = get_cosine_schedule_with_warmup(optimizer, warmup, steps)
    schedule.lr_lambdas = [lambda step, rate=rate: rate(step % steps) for rate in schedule.lr_lambdas]
    return schedule


def lowest(epochs: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The epoch with the lowest development loss; one that diverged to no number is the highest."""
    return min(epochs, key=lambda epoch: (math.isnan(epoch["development_loss"]), epoch["development_loss"]))
