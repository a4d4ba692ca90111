"""Language awareness of every FFN neuron by a first-order Taylor expansion (eq. 3, 4)."""

from __future__ import annotations

import torch


def taylor_awareness(activation: torch.Tensor, gradient: torch.Tensor) -> torch.Tensor:
    """Compute | dL/dh_i · h_i |: how much the loss would change, to first order, were h_i zero (eq. 3).

    Args:
        activation: (..., p); h.
        gradient: (..., p); dL/dh.

    Returns:
        float32 (..., p).
    """
    return (gradient.float() * activation.float()).abs()


def sum_over_tokens(activation: torch.Tensor, gradient: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
    """Sum over the tokens of a batch of what eq. 4 takes means of: |dL/dh · h|, dL/dh and |h|.

    Args:
        activation: (B, T, p), or its rows one below the other; h.
        gradient: As many numbers; dL/dh.
        attention_mask: (B, T); tokens where it is 0 are left out.

    Returns:
        float32 (3, p).
    """
    mask = attention_mask.reshape(-1).to(torch.float32)
    activation = activation.reshape(-1, activation.shape[-1])
    gradient = gradient.reshape(activation.shape)
    parts = (taylor_awareness(activation, gradient), gradient.float(), activation.float().abs())
    return torch.stack([mask @ part for part in parts])


def normalize(awareness: torch.Tensor) -> torch.Tensor:
    """Scale every language's awareness of a layer to sum 1: (L, p) → (L, p); a language of all zeros stays zero."""
    sums = awareness.sum(dim=1, keepdim=True)
    return awareness / torch.where(sums > 0, sums, torch.ones_like(sums))
