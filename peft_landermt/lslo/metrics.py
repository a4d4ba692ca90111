"""What training does to an adapter, in a few numbers."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable

import torch

from ..linear import has_dense_weight, weight_rows
from .layer import LsloLinear


@torch.no_grad()
def training_metrics(layers: Iterable[LsloLinear], adapter_name: str, pruned: float = 0.0) -> dict[str, float]:
    """Tell how far the factors of every language move the weights, and what a learned index is.

    Args:
        layers: Layers that have the adapter.
        adapter_name: An adapter.
        pruned: Share of the entries of B that are zero for good.

    Returns:
        `change_{language}`: ‖ΔW‖ / ‖W‖, Frobenius norms over all layers that have factors of the language; none where
        weights cannot be read. `index_target`: with a learned index, the weight of the target language, the mean of
        all layers. `pruned`: that, where it is not zero.
    """
    squares: dict[str, list[float]] = defaultdict(lambda: [0.0, 0.0])
    weights = []
    for layer in layers:
        blocks = layer.blocks(adapter_name)
        if blocks.word == "learned":
            weights.append(float(blocks.index_weights()[1]))
        if not has_dense_weight(layer.base_layer):
            continue
        base = float(weight_rows(layer.base_layer).float().square().sum())
        for language in blocks.ranks:
            factor_a, factor_b = (factor.float() for factor in blocks.factors(language))
            # ‖B A‖² = tr(Bᵀ B A Aᵀ), without the product of the factors
            square = float(((factor_b.t() @ factor_b) * (factor_a @ factor_a.t())).sum())
            squares[language][0] += blocks.scaling**2 * max(square, 0.0)
            squares[language][1] += base
    metrics = {f"change_{each}": (delta / base) ** 0.5 for each, (delta, base) in squares.items() if base}
    if pruned:
        metrics["pruned"] = pruned
    if weights:
        metrics["index_target"] = sum(weights) / len(weights)
    return metrics
