"""Language awareness of every FFN neuron by a first-order Taylor expansion (eq. 3, 4)."""

from __future__ import annotations

import torch


def taylor_awareness(activation: torch.Tensor, gradient: torch.Tensor) -> torch.Tensor:
    """| dL/dh_i · h_i |: how much the loss would change, to first order, were h_i zero (eq. 3).

    Args:
        activation: (..., p); h.
        gradient: (..., p); dL/dh.

    Returns:
        float32 (..., p).
    """
    return (gradient.float() * activation.float()).abs()


class AwarenessSum:
    """Running sums over the tokens of one language, for one FFN of p neurons (eq. 4).

    Nothing of a batch is kept but three vectors of p numbers, so memory does not grow with the number of batches.
    """

    def __init__(self, neurons: int, device: torch.device) -> None:
        self.awareness = torch.zeros(neurons, device=device)
        self.gradient = torch.zeros(neurons, device=device)
        self.abs_activation = torch.zeros(neurons, device=device)

    def add(self, activation: torch.Tensor, gradient: torch.Tensor, attention_mask: torch.Tensor) -> None:
        """Add a batch: activation and gradient (B, T, p), attention_mask (B, T)."""
        mask = attention_mask.reshape(-1).to(torch.float32)
        activation = activation.reshape(-1, activation.shape[-1])
        gradient = gradient.reshape(activation.shape)
        self.awareness += mask @ taylor_awareness(activation, gradient)
        self.gradient += mask @ gradient.float()
        self.abs_activation += mask @ activation.float().abs()


def normalize(awareness: torch.Tensor) -> torch.Tensor:
    """Scale every language's awareness of a layer to sum 1: (L, p) → (L, p); a language of all zeros stays zero."""
    sums = awareness.sum(dim=1, keepdim=True)
    return awareness / torch.where(sums > 0, sums, torch.ones_like(sums))
