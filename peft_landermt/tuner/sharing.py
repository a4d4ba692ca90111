"""Pair adapters that came from one adapter hold equal blocks; loaded side by side, they keep one copy of each."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch

from .layer import LanderFFN


@torch.no_grad()
def share_equal_tensors(layers: Iterable[LanderFFN], adapter_name: str, others: Sequence[str]) -> None:
    """Let an adapter that was loaded for inference use the memory of others that hold the same values.

    It takes copies of its own again before it is trained or loaded anew. Whoever writes into its tensors by hand
    writes into the others' too.

    Args:
        layers: Adapted FFNs.
        adapter_name: The adapter that was just loaded.
        others: Adapters that were loaded for inference before.
    """
    for layer in layers:
        if adapter_name in layer.lander_blocks:
            for other in others:
                if other in layer.lander_blocks:
                    layer.blocks(adapter_name).share_with(layer.blocks(other))
