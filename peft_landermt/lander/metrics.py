"""What training does to an adapter, in a few numbers: how far weights have moved, and how open gates are."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator

import torch

from ..linear import has_dense_weight, weight_rows
from ..routed.layer import RoutedLayer
from .gates import gates_of_pair
from .layer import LanderFFN
from .layout import GENERAL, INPUT_DEPENDENT
from .shared import LanderAttention


@torch.no_grad()
def relative_changes(layers: Iterable[RoutedLayer], adapter_name: str) -> dict[str, float]:
    """Tell how far every block has moved the weights of its places: ‖ΔW‖ / ‖W‖.

    Frobenius norms over the rows (columns of the output projection) of the block's neurons, all FFNs together; for
    `attention` over the rows of the tuned roles, which for an added language count with its neurons.

    Args:
        layers: Layers that have the adapter.
        adapter_name: An adapter.

    Returns:
        A number for `general`, for every language whose neurons are tuned and for `attention`; none where the base
        weight cannot be read as a matrix, because it is quantized, offloaded or split.
    """
    squares: dict[str, list[float]] = defaultdict(lambda: [0.0, 0.0])
    for layer in layers:
        for name, delta, base in _moved(layer, adapter_name):
            squares[name][0] += float(delta.float().square().sum())
            squares[name][1] += float(base.float().square().sum())
    return {name: (delta / base) ** 0.5 for name, (delta, base) in squares.items() if base}


def _moved(layer: RoutedLayer, adapter_name: str) -> Iterator[tuple[str, torch.Tensor, torch.Tensor]]:
    """Every block of a layer with its delta and the weights that it moves."""
    weights = {name: projection.base_layer for name, projection in layer.projections.items()}
    weights = {name: base for name, base in weights.items() if has_dense_weight(base)}
    if isinstance(layer, LanderAttention):
        factors = layer.blocks(adapter_name)
        for block, role in [(block, role) for block, roles in factors.roles.items() for role in roles]:
            if (base := weights.get(layer.attention.projection(role))) is not None:
                factor_a, factor_b = factors.factors(role, block)
                rows = layer.attention.rows(role, factor_a.device)
                moved = weight_rows(base) if rows is None else weight_rows(base)[rows]
                yield "attention" if block == GENERAL else block, factor_b @ factor_a, moved
    elif isinstance(layer, LanderFFN):
        blocks = layer.blocks(adapter_name)
        for name, tuned in blocks.tuned_on.items():
            for block in tuned if name in weights else ():
                places = blocks.places(block, blocks.projections[name])
                axis = 1 if name == layer.output_name else 0
                yield block, blocks.rows(block, name), weight_rows(weights[name]).index_select(axis, places)


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


def training_metrics(layers: Iterable[RoutedLayer], adapter_name: str) -> dict[str, float]:
    """Give both of the above as scalars for a log: `change_{block}`, `gate_general_{pair}`, `gate_specific_{pair}`.

    Args:
        layers: Adapted layers of a model; those that lack the adapter do not count.
        adapter_name: An adapter.
    """
    concerned = [layer for layer in layers if layer.holds(adapter_name)]
    ffns = [layer for layer in concerned if isinstance(layer, LanderFFN)]
    metrics = {f"change_{block}": change for block, change in relative_changes(concerned, adapter_name).items()}
    for pair, (general, specific) in mean_gates(ffns, adapter_name).items():
        metrics |= {f"gate_general_{pair}": general, f"gate_specific_{pair}": specific}
    return metrics
