"""Where the labels of a batch stand, so that logits are computed there only."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from ..padding import IGNORED, end_together
from .models import accepts

_DISTANCES_ALONE = ("bloom", "mpt")
"""Model types that cannot be told positions and do not need them: they know distances between tokens only (ALiBi)."""


def labels_together(inputs: dict[str, Any], model: nn.Module) -> dict[str, torch.Tensor]:
    """Move right-padded rows so that their labels stand in as few columns as can be; nothing for other rows, and for
    models in which a token would have another position then.

    Args:
        inputs: A batch, left as it is.
        model: The model that it is for.
    """
    tensors = {name: inputs.get(name) for name in ("input_ids", "attention_mask", "labels")}
    mask = tensors["attention_mask"]
    if mask is None or any(tensor is None for tensor in tensors.values()) or "position_ids" in inputs:
        return {}
    told = accepts(model, "position_ids")
    if not told and getattr(getattr(model, "config", None), "model_type", None) not in _DISTANCES_ALONE:
        return {}
    if bool(mask.all()) or not bool((mask[:, 1:] <= mask[:, :-1]).all()):
        return {}
    moved = end_together({name: tensor for name, tensor in tensors.items() if tensor is not None})
    return moved if told else {name: moved[name] for name in tensors}


def labelled_positions(labels: torch.Tensor) -> torch.Tensor:
    """Return positions from the one before the first label of any row to the last, so that every label has its logits.

    Given as a tensor, not as a number, the model copies the hidden states it needs into one block; the head is a
    single product then, instead of one for each row.
    """
    labelled = (labels != IGNORED).any(dim=0)
    columns = labelled.nonzero().flatten().tolist() or [labels.shape[1] - 1]
    return torch.arange(max(columns[0] - 1, 0), columns[-1] + 1, device=labels.device)
