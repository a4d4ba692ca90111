"""Arguments of `TrainingArguments` that transformers 4 and 5 name differently."""

from __future__ import annotations

import dataclasses
from typing import Any

from transformers import TrainingArguments

_IS_LATER = any(field.name == "train_sampling_strategy" for field in dataclasses.fields(TrainingArguments))


def by_length() -> dict[str, Any]:
    """Return what has rows of like length share a batch."""
    if _IS_LATER:
        return {"train_sampling_strategy": "group_by_length"}
    return {"group_by_length": True}


def warmup(share: float) -> dict[str, Any]:
    """Return what has the learning rate rise for a share of all steps, between 0 and 1."""
    return {"warmup_steps" if _IS_LATER else "warmup_ratio": share}


def is_by_length(args: TrainingArguments) -> bool:
    """Tell whether rows of like length are to share a batch."""
    return all(getattr(args, name) == value for name, value in by_length().items())
