"""Checks of the values in an adapter's file: whose the neurons are, and what gates are made of."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from ..errors import AdapterError
from .layout import GENERAL, BlockLayout

_RANGES = {"awareness_sums": (0.0, 1e38), "mean_token_awareness": (0.0, 1e38), "mean_gradient": (-1e15, 1e15)}
"""From and to of tensors that gates are made of; within them a gate is a number."""


def check_neurons(prefix: str, indices: Mapping[str, torch.Tensor], layout: BlockLayout) -> None:
    """Check the neurons of an FFN's blocks.

    Args:
        prefix: What keys begin with, for messages.
        indices: Neurons of each block, int64 (n,), by the name of the tensor.
        layout: The layout of the blocks.

    Raises:
        AdapterError: Indices do not ascend within the FFN, or a neuron is in two blocks that may not share one.
    """
    for name, found in indices.items():
        inside = bool(((found >= 0) & (found < layout.neurons)).all())
        if not inside or not bool((found[1:] > found[:-1]).all()):
            problem = f"neuron indices must ascend within 0 to {layout.neurons - 1}."
            raise AdapterError(f"{prefix}{name}", found[:8].tolist(), problem)
    _check_owners(prefix, {name.removesuffix("_neurons"): found for name, found in indices.items()}, layout)


def _check_owners(prefix: str, neurons: Mapping[str, torch.Tensor], layout: BlockLayout) -> None:
    """Check that every neuron has one owner among the general block and the languages that came with it. A neuron
    of an added language may be general too, and of other added languages, but of none that came before all."""
    first = {block: neurons[block] for block in (GENERAL, *layout.specific) if block not in layout.added}
    groups = [("a neuron in two blocks", list(first.values()))]
    languages = [found for block, found in first.items() if block != GENERAL]
    for added in (block for block in layout.specific if block in layout.added):
        own = [neurons[block] for block in (added, f"{added}_general") if block in neurons]
        groups.append((f"a neuron of {added} and of another language", [*own, *languages]))
    for problem, blocks in groups:
        together = torch.cat(blocks) if blocks else torch.empty(0)
        if len(together.unique()) != len(together):
            raise AdapterError(prefix, problem, "every neuron belongs to one block of an FFN.")


def check_ranges(prefix: str, tensors: Mapping[str, torch.Tensor]) -> None:
    """Check that gates can be made of tensors.

    Args:
        prefix: What keys begin with, for messages.
        tensors: Tensors of an FFN's blocks, by name.

    Raises:
        AdapterError: A value is outside of what a gate can be made of, or is none.
    """
    for name, (smallest, largest) in _RANGES.items():
        values = tensors.get(name)
        if values is not None and not bool(((values >= smallest) & (values <= largest)).all()):
            raise AdapterError(f"{prefix}{name}", float(values.min()), f"must be from {smallest} to {largest}.")
