"""Adapters that grow: pairs that are added later, pairs that nobody trained, and pairs that are taken out.

Whatever an adapter held before, it holds bit for bit afterwards: its tensors are the same, and what its pairs compute.
"""

from __future__ import annotations

import copy
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from peft import PeftModel
from safetensors import safe_open

from ..choices import CHOICES, ROLES, Projections, Role
from ..errors import AdapterError, ConfigError, LanguagePairError
from ..language_pair import LanguagePair, languages_of, parse_pair, parse_pairs
from ..neuron_map import NeuronMap
from ..routed.folder import AdapterFolder
from .additions import Addition, beginning
from .config import LanderConfig
from .extending import check_neuron_map
from .filling import average_pairs
from .layer import LanderFFN
from .layout import GENERAL, Counts
from .selecting import for_pairs
from .shared import LanderAttention


def add_language_pairs(
    model: PeftModel,
    neuron_map: NeuronMap | str | os.PathLike[str],
    language_pairs: Sequence[str],
    adapter_name: str = "default",
    *,
    specific_rank: int | None = 4,
    tune: Literal["pair", "specific"] = "pair",
    projections: Projections = "all",
    attention_modules: Sequence[Role] | None = ("q", "k", "v", "o"),
    attention_rank: int = 4,
    init_from: str | None = None,
) -> None:
    """Add pairs of new languages to an adapter, to be trained next; what it holds is frozen and stays as it is.

    Every new language gets blocks of its own, in the layers of its pairs. A new pair sees the adapter's general block
    and those of both of its languages; of them only the new language's are trained. No earlier pair sees a new block,
    so each computes bit for bit what it did. Train the model on rows of the new pairs, and save it, as any other.

    Args:
        model: A model with a LANDER adapter.
        neuron_map: A map with the new languages, made with `detect_neurons(..., extends=...)` of the adapter's own.
        language_pairs: The pairs, such as `["en-zh", "zh-en"]`; each has a language that the adapter has not.
        adapter_name: The adapter.
        specific_rank: Rank of the new languages' blocks; None for whole rows.
        tune: The neurons that a new language's block is on: `"pair"`, its specific ones and the general ones; or
            `"specific"`, its own alone.
        projections: Which projections of these neurons: `"all"`, `"input"` or `"output"`, whatever the adapter's first
            blocks are on.
        attention_modules: Projections of attention in which each new language has low-rank factors; None for none.
        attention_rank: Rank of these.
        init_from: What the new blocks begin as copies of, and learn from there. `"general"`: the first components of
            the general block, in whose place they stand for the new pairs. These go on from what all pairs learned,
            as training on would, while the general block stays. Or a language that was added earlier, with blocks of
            the same form. On neurons that the copied block has not, ΔW begins at zero. None: all of it does.

    Raises:
        AdapterError: There is no such adapter, it is merged, or it has no neuron map; or it saves whole modules, which
            all of its pairs share.
        LanguagePairError: A pair is in the adapter, or not in the map, or the adapter has both of its languages.
        NeuronMapError: The map is of another base, or gives a neuron of a language to another.
        ConfigError: An option is wrong. In all cases nothing is changed.
    """
    config = _adapter(model, adapter_name)
    if config.modules_to_save:
        remedy = "are trained whole, for all pairs; an adapter without them can grow."
        raise ConfigError("modules_to_save", config.modules_to_save, remedy)
    if tune not in ("pair", "specific"):
        raise ConfigError("tune", tune, "must be 'pair' or 'specific'.")
    if projections not in CHOICES["projections"]:
        raise ConfigError("projections", projections, f"must be one of {', '.join(CHOICES['projections'])}.")
    found = neuron_map if isinstance(neuron_map, NeuronMap) else NeuronMap.load(neuron_map)
    pairs = parse_pairs(language_pairs)
    held = languages_of(parse_pairs(config.language_pairs or ()))
    for pair in pairs:
        if str(pair) in (config.language_pairs or ()):
            raise LanguagePairError("language_pairs", str(pair), "is in the adapter already; name new pairs.")
        if set(pair) <= set(held):
            remedy = "has no new language, so there is nothing to train; compose_language_pair adds it as it is."
            raise LanguagePairError("language_pairs", str(pair), remedy)
    found.for_pairs([str(pair) for pair in pairs])
    languages = [language for language in languages_of(pairs) if language not in held]
    check_neuron_map(model, adapter_name, config, found)
    addition = Addition(
        languages=languages,
        language_pairs=[str(pair) for pair in pairs],
        rank=specific_rank,
        attention_modules=None if attention_modules is None else sorted(set(attention_modules), key=_place),
        attention_rank=attention_rank,
        neuron_map_signature=found.signature,
        projections=projections,
    )
    if init_from is not None:
        addition = beginning(config, addition, init_from, tune)
    grown = copy.copy(config)
    grown.language_pairs = [*(config.language_pairs or ()), *addition.language_pairs]
    grown.additions = [*(config.additions or ()), addition.to_dict()]
    grown.neuron_counts = _with_pairs(config, found, pairs, languages, tune)
    grown.inference_mode = False
    _change(model, adapter_name, grown, found)
    if init_from is not None:
        for layer in model.modules():
            if isinstance(layer, (LanderFFN, LanderAttention)) and layer.holds(adapter_name):
                for language in languages:
                    layer.blocks(adapter_name).copy_block(language, init_from)


def compose_language_pair(
    model: PeftModel,
    language_pair: str,
    adapter_name: str = "default",
    neuron_map: NeuronMap | str | os.PathLike[str] | None = None,
) -> None:
    """Add a pair that nobody trained to an adapter: both languages have blocks there, and the pair uses these.

    It is adapted in every layer where some pair has one of its languages. The adapter's config and card tell that it
    was composed.

    Args:
        model: A model with a LANDER adapter.
        language_pair: The pair, such as `"de-fr"` for an adapter of German and French, each with English.
        adapter_name: The adapter.
        neuron_map: The adapter's map, which only gates and dropped neurons need (`car`, `inactive_neurons`).

    Raises:
        AdapterError: There is no such adapter, it is merged, or it has no neuron map.
        LanguagePairError: The pair is in the adapter, or no pair of it has one of the languages.
        ConfigError: The adapter needs a neuron map.
        NeuronMapError: The map is not the adapter's. In all cases nothing is changed.
    """
    config = _adapter(model, adapter_name)
    pair = parse_pair(language_pair)
    if str(pair) in (config.language_pairs or ()):
        raise LanguagePairError("language_pair", str(pair), "is in the adapter already; name another.")
    held = languages_of(parse_pairs(config.language_pairs or ()))
    for language in pair:
        if language not in held:
            remedy = (
                f"the adapter has no block of {language!r}; it has {', '.join(held)}. add_language_pairs adds one."
            )
            raise LanguagePairError("language_pair", str(pair), remedy)
    if config.needs_groups and neuron_map is None:
        values = {"car": config.car, "inactive_neurons": config.inactive_neurons}
        raise ConfigError("neuron_map", None, f"is needed for an adapter with {values}; give the adapter's.")
    found = NeuronMap.load(neuron_map) if isinstance(neuron_map, (str, os.PathLike)) else neuron_map
    if found is not None:
        check_neuron_map(model, adapter_name, config, found)
    grown = copy.copy(config)
    grown.language_pairs = [*(config.language_pairs or ()), str(pair)]
    grown.composed_pairs = [*(config.composed_pairs or ()), str(pair)]
    grown.neuron_counts = copy.deepcopy(config.neuron_counts)
    for counts in (grown.neuron_counts or {}).values():
        if set(pair) & set(languages_of(parse_pairs(counts["language_pairs"]))):
            counts["language_pairs"].append(str(pair))
            if found is not None and config.needs_groups:
                _add_groups(counts, found, pair)
    _change(model, adapter_name, grown, found)
    for layer in _ffns(model, adapter_name):
        if str(pair) in layer.blocks(adapter_name).layout.language_pairs:
            average_pairs(layer.blocks(adapter_name), str(pair), awareness=found is None)


def remove_language_pairs(model: PeftModel, language_pairs: Sequence[str], adapter_name: str = "default") -> None:
    """Take pairs out of an adapter, and the blocks that no other pair needs; all else stays as it is.

    Once the pairs of the newest addition are gone, those of the one before are what training goes on with.

    Args:
        model: A model with a LANDER adapter.
        language_pairs: The pairs, trained or composed.
        adapter_name: The adapter.

    Raises:
        AdapterError: There is no such adapter, it is merged, or it has no neuron map.
        LanguagePairError: The adapter has no such pair, or no others. In all cases nothing is changed.
    """
    config = _adapter(model, adapter_name)
    held = list(config.language_pairs or ())
    removed = [str(pair) for pair in parse_pairs(language_pairs)]
    for pair in removed:
        if pair not in held:
            raise LanguagePairError("language_pairs", pair, f"adapter {adapter_name!r} holds {', '.join(held)}.")
    if set(removed) == set(held):
        raise LanguagePairError("language_pairs", removed, "are all of the adapter's; delete_adapter deletes it.")
    _change(model, adapter_name, for_pairs(config, [pair for pair in held if pair not in removed]), None)


def _place(role: str) -> int:
    """Where a role stands among all; after them what is none, which is told when the addition is read."""
    return ROLES.index(role) if role in ROLES else len(ROLES)


def _adapter(model: PeftModel, adapter_name: str) -> LanderConfig:
    """The config of an adapter that can change its pairs."""
    config = getattr(model, "peft_config", {}).get(adapter_name)
    if not isinstance(model, PeftModel) or not isinstance(config, LanderConfig):
        loaded = list(getattr(model, "peft_config", {}))
        raise AdapterError("adapter_name", adapter_name, f"name a LANDER adapter of a PeftModel; loaded: {loaded}.")
    layers = [layer for layer in model.modules() if isinstance(layer, LanderFFN)]
    if any(layer.merged for layer in layers):
        raise AdapterError("adapter_name", adapter_name, "the model is merged; call unmerge_adapter() first.")
    if config.neuron_counts is None or not config.language_pairs:
        remedy = "was made without a neuron map, so it has no blocks of languages; train one with a map."
        raise AdapterError("adapter_name", adapter_name, remedy)
    held = (layer.blocks(adapter_name) for layer in layers if layer.holds(adapter_name))
    if any(tensor.is_meta for blocks in held for tensor in (*blocks.parameters(), *blocks.buffers())):
        raise AdapterError("adapter_name", adapter_name, "is offloaded; load it into a base that is not.")
    return config


def _with_pairs(
    config: LanderConfig, neuron_map: NeuronMap, pairs: Sequence[LanguagePair], languages: Sequence[str], tune: str
) -> dict[str, Any]:
    """`neuron_counts` of a config after pairs of some new languages were added to it."""
    grown = copy.deepcopy(config.neuron_counts) or {}
    for layer, entry in enumerate(neuron_map.neurons):
        here = [pair for pair in pairs if layer in neuron_map.layers(str(pair))]
        own = [language for language in languages_of(here) if language in languages]
        specific = {language: len(neuron_map.specific(layer, language)) for language in own}
        general = len(neuron_map.general(layer)) if tune == "pair" else 0
        specific = {language: count for language, count in specific.items() if count or general}
        if not specific:
            continue
        if entry.name not in grown:  # what earlier pairs left alone: a general block says whose neurons are whose
            fresh = Counts.of_map(neuron_map, layer, here, config.tune)
            fresh = fresh._replace(general=fresh.general if config.needs_groups else 0, specific={}, language_pairs=[])
            grown[entry.name] = {**fresh.to_dict(), "untuned": [GENERAL]}
        counts = grown[entry.name]
        counts["specific"] = dict(sorted({**counts["specific"], **specific}.items()))
        counts["language_pairs"] += [str(pair) for pair in here]
        if general:
            counts["on_general"] = dict(
                sorted({**counts.get("on_general", {}), **dict.fromkeys(specific, general)}.items())
            )
        for pair in here if config.needs_groups else ():
            _add_groups(counts, neuron_map, pair)
    return grown


def _add_groups(counts: dict[str, Any], neuron_map: NeuronMap, pair: LanguagePair) -> None:
    """Have an FFN know the neurons of a pair's languages that have no block there, without deltas."""
    for language in pair:
        number = len(neuron_map.specific(counts["layer"], language))
        if language not in counts["specific"] and number and counts["general"] < counts["neurons"]:
            counts["specific"] = dict(sorted({**counts["specific"], language: number}.items()))
            counts["untuned"] = sorted([*counts.get("untuned", ()), language])


def _change(model: PeftModel, adapter_name: str, config: LanderConfig, neuron_map: NeuronMap | None) -> None:
    """Give an adapter another config, and the blocks that it asks for."""
    config.save_dtype = config.save_dtype or _saved_type(config)
    config.format_version, config.source, config.neuron_map = config.needed_format, None, neuron_map
    model.base_model.reform_adapter(adapter_name, config)


def _saved_type(config: LanderConfig) -> Any:
    """The type of the deltas in the folder that an adapter was read from, so that they are saved as they were."""
    source = config.source
    if not isinstance(source, AdapterFolder) or not Path(source.name, source.subfolder or "").is_dir():
        return None
    with safe_open(source.weights(), framework="pt") as file:
        types = config.types_of_deltas(file)
    return {"F32": "fp32", "BF16": "bf16"}.get(types.pop()) if len(types) == 1 else None


def _ffns(model: PeftModel, adapter_name: str) -> list[LanderFFN]:
    layers = (layer for layer in model.modules() if isinstance(layer, LanderFFN))
    return [layer for layer in layers if layer.holds(adapter_name)]
