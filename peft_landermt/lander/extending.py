"""Whether a neuron map extends the one that an adapter was made with."""

from __future__ import annotations

from collections.abc import Collection

from peft import PeftModel

from ..errors import NeuronMapError
from ..language_pair import languages_of, parse_pairs
from ..neuron_map import NeuronMap
from ..neuron_map_checks import GENERAL as NOBODY
from .config import LanderConfig
from .deltas import NeuronBlocks
from .layer import LanderFFN
from .layout import GENERAL


def check_neuron_map(model: PeftModel, adapter_name: str, config: LanderConfig, neuron_map: NeuronMap) -> None:
    """Check that a map is of an adapter's base, and leaves every neuron to the language that the adapter has it for.

    Neurons that are general in the adapter may be of languages in the map that came later, or that it has not.

    Args:
        model: The model.
        adapter_name: The adapter.
        config: Its config.
        neuron_map: The map.

    Raises:
        NeuronMapError: It does not.
    """
    remedy = "detect neurons on the adapter's base, with extends= its own map."
    if config.base_fingerprint is not None and neuron_map.fingerprint not in (None, config.base_fingerprint):
        problem = f"the adapter was made on {config.base_fingerprint}"
        raise NeuronMapError("neuron_map", neuron_map.fingerprint, f"is of another base; {problem}: {remedy}")
    first = set(languages_of(parse_pairs(config.language_pairs or ()))) - config.added.keys()
    for name, counts in (config.neuron_counts or {}).items():
        entry = neuron_map.neurons[counts["layer"]] if counts["layer"] < neuron_map.num_layers else None
        if entry is None or entry.name != name or len(entry.owner) != counts["neurons"]:
            raise NeuronMapError("neuron_map", name, f"the map has no such FFN of {counts['neurons']}; {remedy}")
        layer = model.base_model.model.get_submodule(name)
        if isinstance(layer, LanderFFN) and layer.holds(adapter_name):
            _check_owners(name, layer.blocks(adapter_name), neuron_map, counts["layer"], first)


def _check_owners(name: str, blocks: NeuronBlocks, neuron_map: NeuronMap, layer: int, first: Collection[str]) -> None:
    codes = {NOBODY: GENERAL, **dict(enumerate(neuron_map.languages))}
    owners = [codes[code] for code in neuron_map.neurons[layer].owner.tolist()]
    layout = blocks.layout
    later = {language for language in neuron_map.languages if language not in first}
    may_be = {GENERAL: {GENERAL, *later}, **{block: {block} for block in layout.specific}}
    if layout.tune == "layers":  # all neurons are in the general block
        del may_be[GENERAL]
    for block, allowed in may_be.items():
        mine = set(blocks.neurons(block).tolist())
        moved = [neuron for neuron in mine if owners[neuron] not in allowed]
        gained = [n for n, owner in enumerate(owners) if owner == block != GENERAL and n not in mine]
        if moved or gained:
            neuron = min(moved + gained)
            here = block if neuron in mine else "another"
            problem = f"is of {here} in the adapter and of {owners[neuron]} in the map"
            remedy = "make the map with detect_neurons(..., extends=...) of the adapter's own."
            raise NeuronMapError("neuron_map", f"{name}, neuron {neuron}", f"{problem}; {remedy}")
