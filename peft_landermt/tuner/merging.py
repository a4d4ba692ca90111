"""Merging: the weights of a plain FFN that computes what an adapted one does, where gates are constant."""

from __future__ import annotations

import torch
from torch import nn

from ..linear import weight_rows
from .blocks import GENERAL_BLOCK, NeuronBlocks
from .routing import constant_gates


def merged_weight(
    layer: nn.Module, blocks: NeuronBlocks, projection: str, pair: str | None, *, is_output: bool
) -> torch.Tensor:
    """Weight of one projection with an adapter merged into it, as a new tensor in the layer's own layout and type.

    Deltas are added and rows of the input projections scaled by their gate (eq. 7, 8); with dropped neurons, the
    columns of the output projection that belong to them become zero (eq. 9). All in the deltas' type or the weight's,
    whichever is the more precise, and rounded once.

    Args:
        layer: The base projection.
        blocks: The adapter's blocks at this FFN.
        projection: Name of the projection.
        pair: The pair to merge for; weights stay as they are where the FFN does not concern it.
        is_output: Whether it is the output projection.
    """
    layout = blocks.layout
    stored = layer.weight
    assert isinstance(stored, torch.Tensor)
    if not layout.concerns(pair):
        return stored.data.clone()
    transposed = weight_rows(layer) is not stored
    neuron_axis = 1 if is_output else 0
    weight = weight_rows(layer).detach().clone(memory_format=torch.contiguous_format)
    general, specific = blocks.group_masks(pair)
    wanted = (GENERAL_BLOCK, *layout.languages(pair))
    gates = gates_of_pair(blocks, pair) if not is_output else (1.0, 1.0)
    for block, gate in zip(wanted, (gates[0], *[gates[1]] * (len(wanted) - 1)), strict=True):
        if block not in layout.tuned_blocks and gate == 1.0:
            continue
        neurons = blocks.neurons(block, projection)
        rows = weight.index_select(neuron_axis, neurons)
        if block in layout.tuned_blocks:
            delta = blocks.rows(block, projection).detach()
            precise = torch.promote_types(rows.dtype, delta.dtype)
            rows = rows.to(precise) + (delta.t() if is_output else delta)
        weight.index_copy_(
            neuron_axis, neurons, (rows * gate).to(weight.dtype) if gate != 1.0 else rows.to(weight.dtype)
        )
    if is_output and layout.drops_neurons:
        weight[:, ~(general | specific)] = 0
    return weight.t().contiguous() if transposed else weight


def gates_of_pair(blocks: NeuronBlocks, pair: str | None) -> tuple[float, float]:
    """Gates of the general and of the pair's specific neurons, where they do not depend on the input."""
    if blocks.layout.car == "off":
        return 1.0, 1.0
    return constant_gates(blocks.layout.car, *blocks.get_buffer("awareness_sums")[blocks.pair_index(pair)].tolist())
