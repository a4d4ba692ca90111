"""How long a training will take and how much memory it needs, told from two of its steps."""

from __future__ import annotations

import argparse
import sys
import time
from math import ceil
from typing import Any

import torch

_ADAM_BYTES = 8
"""Of two averages in float32 for each trained parameter."""


def estimate(model: Any, collator: Any, rows: list[dict[str, str]], options: argparse.Namespace) -> str:
    """Run forward and backward on two batches, and tell what the whole training needs.

    The first batch has the longest rows, which decide about memory; the second rows of every length, which decide
    about time. Gradients are dropped; no weight changes.

    Args:
        model: The model with its adapter.
        collator: Makes batches.
        rows: Rows to train on.
        options: Of the command: `batch_size`, `accumulation`, `epochs`.

    Returns:
        One line.
    """
    by_length = sorted(rows, key=lambda row: len(row["source"]) + len(row["target"]))
    longest = by_length[-options.batch_size :]
    spread = by_length[:: max(1, len(rows) // options.batch_size)][: options.batch_size]
    model.train()
    _step(model, collator(longest))
    start = time.perf_counter()
    _step(model, collator(spread))
    seconds = time.perf_counter() - start
    model.zero_grad()
    batches = ceil(len(rows) / options.batch_size) * options.epochs
    trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    peak = (_peak_bytes(model.device) + _ADAM_BYTES * trained) / 2**30
    return (
        f"estimate on {model.device.type}: {ceil(batches / options.accumulation)} steps, about "
        f"{_duration(batches * seconds)} and {peak:.1f} GiB"
    )


def _step(model: Any, batch: dict[str, Any]) -> None:
    moved = {key: value.to(model.device) if torch.is_tensor(value) else value for key, value in batch.items()}
    model(**moved).loss.backward()
    if model.device.type == "cuda":
        torch.cuda.synchronize(model.device)


def _peak_bytes(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    import resource  # not on Windows, where torch counts nothing on a CPU either

    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{ceil(seconds)} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
