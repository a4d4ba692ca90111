"""What training does to an adapter, in a few numbers: how far weights have moved, and how open gates are."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable

import torch

from ..linear import has_dense_weight, weight_rows
from .gates import gates_of_pair
from .layer import LanderFFN
from .layout import INPUT_DEPENDENT


@torch.no_grad()
def relative_changes(layers: Iterable[LanderFFN], adapter_name: str) -> dict[str, float]:
    """Tell how far every block has moved the weights of its neurons: ‖ΔW‖ / ‖W‖.

    Frobenius norms over the rows (columns of the output projection) of the block's neurons, all FFNs together.

    Args:
        layers: FFNs that have the adapter.
        adapter_name: An adapter.

    Returns:
        A number for `general` and for every language whose neurons are tuned; none for FFNs whose base weight cannot
        be read as a matrix, because it is quantized, offloaded or split.
    """
    squares: dict[str, list[float]] = defaultdict(lambda: [0.0, 0.0])
    for layer in layers:
        blocks = layer.blocks(adapter_name)
        for name, projection in layer.projections.items():
            if not has_dense_weight(projection.base_layer):
                continue
            for block in blocks.layout.tuned_blocks:
                axis = 1 if name == layer.output_name else 0
                places = blocks.places(block, blocks.projections[name])
                rows = weight_rows(projection.base_layer).index_select(axis, places)
                squares[block][0] += float(blocks.rows(block, name).float().square().sum())
                squares[block][1] += float(rows.float().square().sum())
    return {block: (delta / base) ** 0.5 for block, (delta, base) in squares.items() if base}


@torch.no_grad()
def mean_gates(layers: Iterable[LanderFFN], adapter_name: str) -> dict[str, tuple[float, float]]:
    """Average the gates of the general and of the specific neurons, for every pair, over the FFNs that it concerns.

    With `car="learned"` and `"token"` over the tokens that went through since the last call, in training mode; pairs
    without a token are left out. With `"paper"` and `"proportional"` the constants (eq. 6 to 8).

    Args:
        layers: FFNs that have the adapter.
        adapter_name: An adapter.

    Returns:
        (general, specific) by pair; nothing with `car="off"`.
    """
    found: dict[str, list[tuple[float, float]]] = defaultdict(list)
    for layer in layers:
        blocks = layer.blocks(adapter_name)
        if blocks.layout.car == "off":
            continue
        if blocks.layout.car in INPUT_DEPENDENT:
            gates = blocks.take_observed_gates()
        else:
            gates = {pair: gates_of_pair(blocks, pair) for pair in blocks.layout.language_pairs}
        for pair, values in gates.items():
            found[pair].append(values)
    return {pair: tuple(sum(side) / len(side) for side in zip(*gates, strict=True)) for pair, gates in found.items()}


def training_metrics(layers: Iterable[LanderFFN], adapter_name: str) -> dict[str, float]:
    """Give both of the above as scalars for a log: `change_{block}`, `gate_general_{pair}`, `gate_specific_{pair}`.

    Args:
        layers: FFNs of a model; those that lack the adapter do not count.
        adapter_name: An adapter.
    """
    concerned = [layer for layer in layers if layer.holds(adapter_name)]
    metrics = {f"change_{block}": change for block, change in relative_changes(concerned, adapter_name).items()}
    for pair, (general, specific) in mean_gates(concerned, adapter_name).items():
        metrics |= {f"gate_general_{pair}": general, f"gate_specific_{pair}": specific}
    return metrics
