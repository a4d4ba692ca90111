"""Rows of token ids as one tensor: what detection, training and translating share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from torch.nn.utils.rnn import pad_sequence

IGNORED = -100
"""Label of positions that the loss leaves out."""


def padding_id(tokenizer: Any) -> int:
    """Return the tokenizer's padding token, or a token that stands in for it; what it is does not matter under the
    mask."""
    known = (tokenizer.pad_token_id, getattr(tokenizer, "eos_token_id", None), 0)
    return next(token for token in known if token is not None)


def pad_rows(
    rows: Sequence[Sequence[int]], value: int, side: Literal["left", "right"] = "right"
) -> tuple[torch.Tensor, torch.Tensor]:
    """Pad token ids, and make their mask, 1 for tokens and 0 for padding: two int64 (B, T)."""
    ids = [torch.tensor(row) for row in rows]
    masks = [torch.ones_like(row) for row in ids]
    return (
        pad_sequence(ids, batch_first=True, padding_value=value, padding_side=side),
        pad_sequence(masks, batch_first=True, padding_side=side),
    )


def end_together(rows: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Right-padded rows as left-padded ones, with `position_ids`, so that every token keeps the place that it had.

    Args:
        rows: Tensors (B, T), among them `attention_mask`; padding is moved in all of them.
    """
    mask = rows["attention_mask"]
    length = mask.shape[1]
    places = torch.arange(length, device=mask.device) - (length - mask.sum(dim=1, keepdim=True))
    moved = {name: values.gather(1, places % length) for name, values in rows.items()}
    return {**moved, "position_ids": places.clamp(min=0)}
