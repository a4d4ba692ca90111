"""What new blocks hold to begin with: a neuron map's indices and awareness, and what the adapter held before."""

from __future__ import annotations

import torch
from torch import nn

from ..neuron_map import NeuronMap
from ..routed.blocks import Blocks
from .deltas import OWN_GATES, ROW_PER_PAIR, NeuronBlocks
from .layout import GENERAL

_BUFFERS = ("awareness_sums", "mean_gradient", "mean_token_awareness")


@torch.no_grad()
def read_neuron_map(blocks: NeuronBlocks, neuron_map: NeuronMap, layer: int) -> None:
    """Copy neuron indices and awareness of a layer from a map, where they fit; an earlier form's are kept after this.

    Args:
        blocks: New blocks at the layer's FFN.
        neuron_map: The map.
        layer: Index of the FFN in it.
    """
    layout, entry = blocks.layout, neuron_map.neurons[layer]
    lists = {block: neuron_map.specific(layer, block) for block in layout.specific if block in neuron_map.languages}
    if layout.tune != "layers":
        lists[GENERAL] = neuron_map.general(layer)
    lists |= {f"{block}_{GENERAL}": neuron_map.general(layer) for block in layout.on_general}
    for block, neurons in lists.items():
        buffer = blocks.get_buffer(f"{block}_neurons")
        if len(buffer) == len(neurons):
            buffer.copy_(neurons)
    for index, pair in enumerate(layout.language_pairs):
        if not set(pair.split("-")) <= set(neuron_map.languages):
            continue
        if "awareness_sums" in blocks._buffers:
            blocks.get_buffer("awareness_sums")[index] = torch.tensor(
                neuron_map.awareness_between(layer, *pair.split("-"))
            )
        if layout.car == "token":
            languages = [neuron_map.languages.index(language) for language in pair.split("-")]
            gradient = entry.mean_gradient[languages].mean(dim=0)
            awareness = gradient.abs() * entry.mean_abs_activation[languages].mean(dim=0)
            blocks.get_buffer("mean_gradient")[index] = gradient
            specific = [awareness[neuron_map.specific(layer, language)].sum() for language in pair.split("-")]
            sums = torch.stack([torch.stack(specific).sum(), awareness[neuron_map.general(layer)].sum()])
            blocks.get_buffer("mean_token_awareness")[index] = sums


@torch.no_grad()
def keep_earlier(blocks: Blocks, earlier: Blocks) -> None:
    """Take over what an adapter held at a layer before its blocks changed: the same parameters and buffers, and of
    tensors with a row per pair the rows of the pairs that stay.

    Args:
        blocks: New blocks.
        earlier: Those before, of the same adapter and layer.
    """
    for name in blocks._parameters.keys() & earlier._parameters.keys() - set(ROW_PER_PAIR):
        blocks.register_parameter(name, earlier.get_parameter(name))
    for name in blocks._buffers.keys() & earlier._buffers.keys() - set(ROW_PER_PAIR):
        blocks.register_buffer(name, earlier.get_buffer(name))
    if not isinstance(blocks, NeuronBlocks) or not isinstance(earlier, NeuronBlocks):
        return
    before = {pair: index for index, pair in enumerate(earlier.layout.language_pairs)}
    for name in _BUFFERS:
        for index, pair in enumerate(blocks.layout.language_pairs if name in blocks._buffers else ()):
            if pair in before:
                blocks.get_buffer(name)[index] = earlier.get_buffer(name)[before[pair]]
    if "gates" in blocks._parameters:
        staying = [pair for pair in blocks.layout.language_pairs if pair not in blocks.layout.own_gates]
        kept = earlier.gates_of(staying)
        same = kept.shape == earlier.get_parameter("gates").shape
        blocks.register_parameter("gates", earlier.get_parameter("gates") if same else nn.Parameter(kept))


@torch.no_grad()
def average_pairs(blocks: NeuronBlocks, pair: str, awareness: bool) -> None:
    """Give a pair that nobody trained the mean of what the pairs here with one of its languages have.

    Args:
        blocks: Blocks at an FFN that is adapted for the pair.
        pair: The pair.
        awareness: Whether also of sums of awareness, which nobody knows without a neuron map; else of learned gates.
    """
    pairs, languages = blocks.layout.language_pairs, set(pair.split("-"))
    others = [other for other in pairs if other != pair and languages & set(other.split("-"))]
    rows = [blocks.pair_index(other) for other in others]
    for name in _BUFFERS if awareness else ():
        if name in blocks._buffers:
            buffer = blocks.get_buffer(name)
            buffer[blocks.pair_index(pair)] = buffer[rows].mean(dim=0)
    if f"{OWN_GATES}{pair}" in blocks._parameters:
        blocks.get_parameter(f"{OWN_GATES}{pair}").copy_(blocks.gates_of(others).mean(dim=0, keepdim=True))
