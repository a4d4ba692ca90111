"""Some of an adapter's pairs: their config, and their tensors among all."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from ..attention import layer_of
from ..language_pair import languages_of, parse_pairs
from ..routed.folder import PREFIX
from ..routed.state import State
from .config import LanderConfig
from .deltas import OWN_GATES, is_row_per_pair
from .layout import GENERAL

MARK = ".lander_blocks."
"""What stands between a module's name and that of a tensor of its blocks."""


def for_pairs(config: LanderConfig, pairs: Sequence[str]) -> LanderConfig:
    """Return the config of an adapter that holds only some pairs of another: all that these need, and nothing else.

    Args:
        config: Of the other; it is left as it is.
        pairs: The pairs, in the order in which it holds them.
    """
    chosen = copy.copy(config)
    chosen.language_pairs = list(pairs)
    chosen.neuron_map, chosen.source = None, None
    spoken = set(languages_of(parse_pairs(pairs)))
    additions = [
        {
            **addition,
            "languages": [language for language in addition["languages"] if language in spoken],
            "language_pairs": [pair for pair in addition["language_pairs"] if pair in pairs],
        }
        for addition in config.additions or ()
    ]
    chosen.additions = [addition for addition in additions if addition["languages"]] or None
    chosen.composed_pairs = [pair for pair in config.composed_pairs or () if pair in pairs] or None
    if config.neuron_counts is not None:
        found = {module: _counts(counts, pairs) for module, counts in config.neuron_counts.items()}
        chosen.neuron_counts = {module: counts for module, counts in found.items() if counts["language_pairs"]}
        chosen.format_version = chosen.needed_format
    return chosen


def _counts(counts: Mapping[str, Any], pairs: Sequence[str]) -> dict[str, Any]:
    """`neuron_counts` of an FFN for some pairs."""
    here = [pair for pair in counts["language_pairs"] if pair in pairs]
    spoken = {language for pair in here for language in pair.split("-")}
    chosen = {**counts, "language_pairs": here}
    for name in ("specific", "on_general"):
        if name in counts:
            chosen[name] = {key: count for key, count in counts[name].items() if key in spoken}
    if "untuned" in counts:
        chosen["untuned"] = [block for block in counts["untuned"] if block in (GENERAL, *chosen["specific"])]
    return {name: value for name, value in chosen.items() if value or name not in ("on_general", "untuned")}


def tensors_for_pairs(config: LanderConfig, chosen: LanderConfig, state: Mapping[str, torch.Tensor]) -> State:
    """Select the tensors of an adapter that one with some of its pairs holds.

    Args:
        config: Of the adapter.
        chosen: What `for_pairs` made of it.
        state: Its tensors, in the keys of a file.
    """
    whole: dict[str, Any] = {"specific": {}, "language_pairs": config.language_pairs or ()}
    pairs, layers = chosen.language_pairs or (), {layer_of(module): module for module in chosen.neuron_counts or {}}
    kept: State = {}
    for key, value in state.items():
        module, is_block, name = key.removeprefix(PREFIX).partition(MARK)
        if not is_block:
            kept[key] = value
        elif config.neuron_counts is None or module in config.neuron_counts:
            counts = whole if config.neuron_counts is None else config.neuron_counts[module]
            if chosen.neuron_counts is not None and module not in chosen.neuron_counts:
                continue
            if is_row_per_pair(name):
                rows = _rows(name, value, counts["language_pairs"], pairs, config.later_pairs)
                kept |= {} if rows is None else {key: rows}
            elif chosen.neuron_counts is None or _belongs(name, counts, chosen.neuron_counts[module]):
                kept[key] = value
        elif config.adapts_all_attention:
            if _belongs(name, {"specific": config.added}, {"specific": chosen.added}):
                kept[key] = value
        elif (ffn := layers.get(layer_of(module))) is not None:  # attention in the pairs' layers
            assert config.neuron_counts is not None and chosen.neuron_counts is not None
            if _belongs(name, config.neuron_counts[ffn], chosen.neuron_counts[ffn]):
                kept[key] = value
    return kept


def _belongs(name: str, counts: Mapping[str, Any], chosen: Mapping[str, Any]) -> bool:
    """Whether a tensor is of a block that some chosen pair uses, among all blocks of an FFN."""
    blocks = [block for block in (GENERAL, *counts["specific"]) if name.startswith(f"{block}_")]
    return max(blocks, key=len) in (GENERAL, *chosen["specific"])


def _rows(
    name: str, value: torch.Tensor, held: Sequence[str], pairs: Sequence[str], later: set[str]
) -> torch.Tensor | None:
    """The rows of some pairs, of a tensor that has one row per pair; None if there are none."""
    if name.startswith(OWN_GATES):
        return value if name.removeprefix(OWN_GATES) in pairs else None
    of = [pair for pair in held if name != "gates" or pair not in later]
    rows = [index for index, pair in enumerate(of) if pair in pairs]
    if len(rows) == len(value) or not of:
        return value
    return value[rows].clone() if rows else None
