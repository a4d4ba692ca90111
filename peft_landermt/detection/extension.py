"""Detection for more languages and pairs than a map has, which stay as they are."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from ..errors import DetectionError, NeuronMapError
from ..ffn import FFN, FFNLayout
from ..fingerprint import fingerprint
from ..language_pair import LanguagePair
from ..neuron_map import LayerNeurons, NeuronMap
from .awareness import normalize
from .partition import extend_partition, partition


def read_map(extends: NeuronMap | str | os.PathLike[str] | None) -> NeuronMap | None:
    """Return the map to extend, from its file if need be."""
    return NeuronMap.load(extends) if isinstance(extends, (str, os.PathLike)) else extends


def layout_of(earlier: NeuronMap | None, ffn_layout: Mapping[str, Any] | None) -> FFNLayout | None:
    """Return the layout of FFNs that are not recognised: that of the earlier map where none is given."""
    if ffn_layout is None and earlier is not None:
        ffn_layout = earlier.options.get("ffn_layout")
    return None if ffn_layout is None else FFNLayout.from_dict(ffn_layout)


def check_extension(
    earlier: NeuronMap,
    model: nn.Module,
    ffns: list[FFN],
    layout: FFNLayout | None,
    pairs: list[LanguagePair],
    normalize_awareness: bool,
    layer_statistic: str,
) -> None:
    """Check that a map is of this model, was made in the same way, and lacks a pair.

    Raises:
        NeuronMapError: It is of another base.
        DetectionError: Its awareness has another scale, or it has no gradients where they are asked for, or holds
            all pairs.
    """
    remedy = "extend a map that was detected on this model."
    found = fingerprint(model, layout)
    if None not in (found, earlier.fingerprint) and found != earlier.fingerprint:
        raise NeuronMapError("extends", earlier.fingerprint, f"is of another base than {found}; {remedy}")
    sizes = [(ffn.name, ffn.neurons) for ffn in ffns]
    if sizes != [(entry.name, len(entry.owner)) for entry in earlier.neurons] or ffns[0].width != earlier.width:
        raise NeuronMapError("extends", earlier.signature, f"has other FFNs than the model; {remedy}")
    detected = earlier.options.get("normalize_awareness", normalize_awareness)
    if detected != normalize_awareness:
        problem = f"the map was made with {detected}, and awareness is compared between languages; give the same."
        raise DetectionError("normalize_awareness", normalize_awareness, problem)
    if layer_statistic == "gradient" and earlier.gradients is None:
        problem = "the map was detected without gradients; give 'activation', or detect all languages anew."
        raise DetectionError("layer_statistic", layer_statistic, problem)
    if all(str(pair) in earlier.pair_layers for pair in pairs):
        raise DetectionError("language_pairs", [str(pair) for pair in pairs], "are all in the map that is extended.")


def extended(earlier: NeuronMap | None, gradients: torch.Tensor) -> torch.Tensor:
    """Return gradients (L, layers, parts) of an earlier map's languages and of new ones."""
    if earlier is None or earlier.gradients is None:
        return gradients
    return torch.cat([earlier.gradients, gradients])


def partition_layer(
    name: str,
    statistics: list[torch.Tensor],
    general_ratio: float,
    normalize_awareness: bool,
    earlier: LayerNeurons | None,
) -> LayerNeurons:
    """Split the neurons of an FFN (eq. 5).

    Args:
        name: Its name.
        statistics: For every language, of the new ones where a map is extended: means over tokens of Phi (eq. 4),
            dL/dh and |h|: (3, p).
        general_ratio: epsilon.
        normalize_awareness: Whether Phi of every language is scaled to sum 1.
        earlier: The FFN in the map that is extended, whose owners and statistics stay; None without one.
    """
    if not statistics:
        assert earlier is not None
        return earlier
    found = torch.stack(statistics, dim=1)
    if normalize_awareness:
        found[0] = normalize(found[0])
    if earlier is None:
        return LayerNeurons(name, partition(found[0], general_ratio), *found)
    before = torch.stack([earlier.awareness, earlier.mean_gradient, earlier.mean_abs_activation])
    together = torch.cat([before, found], dim=1)
    owner = extend_partition(earlier.owner, together[0], general_ratio, len(earlier.awareness))
    return LayerNeurons(name, owner, *together)
