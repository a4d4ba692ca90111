"""What holds of every neuron map, whether detection, a file or a hand made it."""

from __future__ import annotations

import itertools
import json
import math
import re
from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from .errors import LanderError, NeuronMapError
from .ffn import FFNLayout
from .language_pair import check_language, parse_pairs
from .strict_json import parse_json

if TYPE_CHECKING:
    from .neuron_map import LayerNeurons, NeuronMap

PARTS = ("q", "k", "v", "o", "input", "output")
"""Where gradients are told apart: projections of the attention, and those into and out of an FFN's neurons."""
GENERAL = -1
"""Owner of a language-general neuron."""

_LARGEST = 1e15
"""Of a statistic; products of two such numbers, and sums of these, are finite in float32."""
_LONGEST = 4096
"""Characters of a name or signature."""


def check_neuron_map(neuron_map: NeuronMap) -> None:
    """Check that languages, pairs, layers, owners and statistics are those of one model.

    Raises:
        NeuronMapError: If they are not.
    """
    languages, neurons = neuron_map.languages, neuron_map.neurons
    try:
        for language in languages:
            check_language(language, "languages")
        pairs = parse_pairs(neuron_map.pair_layers, "pair_layers")
        parse_pairs(neuron_map.layer_changes, "layer_changes")
        layout = neuron_map.options.get("ffn_layout") if isinstance(neuron_map.options, Mapping) else None
        if layout is not None:
            FFNLayout.from_dict(layout)
        parse_json(json.dumps(neuron_map.options))
    except (TypeError, ValueError) as error:
        field, value = (error.field, error.value) if isinstance(error, LanderError) else ("options", None)
        raise NeuronMapError(field, value, f"no map can have this ({error}).") from error
    if len(set(languages)) < len(languages) or {code for pair in pairs for code in pair} - set(languages):
        raise NeuronMapError("languages", languages, "must be distinct, and all that the pairs name.")
    for pair, layers in neuron_map.pair_layers.items():
        _check_layers(f"pair_layers[{pair!r}]", layers, len(neurons))
    _check_changes(neuron_map.layer_changes, neuron_map.pair_layers, len(neurons))
    names = [layer.name for layer in neurons]
    for field, text in (("signature", neuron_map.signature), *(("name", name) for name in names)):
        if not isinstance(text, str) or not text.isprintable() or len(text) > _LONGEST:
            raise NeuronMapError(field, text, f"must be at most {_LONGEST} characters of one line of text.")
    if len(set(names)) < len(names) or not all(names):
        raise NeuronMapError("names", names, "must be distinct: one for each FFN.")
    if type(neuron_map.width) is not int or neuron_map.width < 1:
        raise NeuronMapError("width", neuron_map.width, "must be a positive integer.")
    base = neuron_map.fingerprint
    if base is not None and not (isinstance(base, str) and re.fullmatch("[0-9a-f]{16}", base)):
        raise NeuronMapError("fingerprint", base, "must be 16 hexadecimal digits, or None.")
    for layer in neurons:
        _check_neurons(layer, len(languages))
    if (gradients := neuron_map.gradients) is not None:
        shape = (len(languages), len(neurons), len(PARTS))
        if gradients.shape != shape:
            remedy = f"must have the shape {shape}, languages by layers by {', '.join(PARTS)}."
            raise NeuronMapError("gradients", f"shape {tuple(gradients.shape)}", remedy)
        if not bool(((gradients >= 0) & (gradients <= _LARGEST)).all()):
            raise NeuronMapError("gradients", "NaN or out of range", f"must be numbers from 0 to {_LARGEST:g}.")


def _check_layers(field: str, layers: Sequence[Any], available: int) -> None:
    indices = all(type(layer) is int and 0 <= layer < available for layer in layers)
    if not layers or not indices or any(one >= other for one, other in itertools.pairwise(layers)):
        raise NeuronMapError(field, layers, f"must be layers from 0 to {available - 1}, ascending.")


def _check_changes(layer_changes: Mapping[str, Sequence[Any]], pairs: Collection[str], num_layers: int) -> None:
    if not isinstance(layer_changes, Mapping) or set(pairs) - layer_changes.keys():
        raise NeuronMapError("layer_changes", layer_changes, "must have the pairs that pair_layers has.")
    unknown = {tuple(change is None for change in changes) for changes in layer_changes.values()}
    if len(unknown) > 1:
        raise NeuronMapError("layer_changes", layer_changes, "must be None at the ends of the same stacks.")
    for pair, changes in layer_changes.items():
        numbers = [change for change in changes if change is not None]
        known = all(type(change) in (int, float) and change >= 0 and math.isfinite(change) for change in numbers)
        if not num_layers - 1 <= len(changes) <= num_layers or not known:
            field, remedy = (
                f"layer_changes[{pair!r}]",
                "must be a number from 0, or None, for every layer but the last.",
            )
            raise NeuronMapError(field, changes, remedy)


def _check_neurons(layer: LayerNeurons, num_languages: int) -> None:
    owner = layer.owner
    if owner.dim() != 1 or not owner.numel():
        raise NeuronMapError(f"{layer.name}: owner", f"shape {tuple(owner.shape)}", "must have the shape (p,).")
    if bool((owner < GENERAL).any()) or bool((owner >= num_languages).any()):
        extremes = f"{int(owner.min())} to {int(owner.max())}"
        raise NeuronMapError(f"{layer.name}: owner", extremes, f"must be from {GENERAL} to {num_languages - 1}.")
    for name, lowest in (("awareness", 0.0), ("mean_gradient", -_LARGEST), ("mean_abs_activation", 0.0)):
        values = getattr(layer, name)
        if values.shape != (num_languages, len(owner)):
            remedy = f"must have the shape {(num_languages, len(owner))}, languages by neurons."
            raise NeuronMapError(f"{layer.name}: {name}", f"shape {tuple(values.shape)}", remedy)
        wrong = values[~((values >= lowest) & (values <= _LARGEST))]  # NaN is neither
        if wrong.numel():
            remedy = f"must be numbers from {lowest:g} to {_LARGEST:g}."
            raise NeuronMapError(f"{layer.name}: {name}", float(wrong[0]), remedy)
