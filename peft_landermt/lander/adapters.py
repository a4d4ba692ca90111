"""The parts of an adapter for one pair, and one adapter of such parts."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from ..attention import layer_of
from ..errors import AdapterError
from ..routed.adapters import Part, add_tensors, check_same
from ..routed.folder import PREFIX
from ..routed.state import State
from .config import LanderConfig
from .deltas import ROW_PER_PAIR
from .layout import GENERAL

_MARK = ".lander_blocks."


def restrict(config: LanderConfig, state: Mapping[str, torch.Tensor], pair: str) -> tuple[LanderConfig, State]:
    """Return config and state of one pair of an adapter."""
    chosen = copy.copy(config)
    chosen.language_pairs = [pair]
    chosen.neuron_map, chosen.inference_mode, chosen.source = None, True, None
    if config.neuron_counts is None:
        index = (config.language_pairs or [pair]).index(pair)
        return chosen, {key: _rows(key, value, [index]) for key, value in state.items()}
    chosen.neuron_counts = {}
    kept: State = {key: value for key, value in state.items() if _MARK not in key}
    for module, counts in config.neuron_counts.items():
        if pair not in counts["language_pairs"]:
            continue
        specific = {key: count for key, count in counts["specific"].items() if key in pair.split("-")}
        chosen.neuron_counts[module] = {**counts, "specific": specific, "language_pairs": [pair]}
        index = counts["language_pairs"].index(pair)
        prefix = f"{PREFIX}{module}{_MARK}"
        for key, value in state.items():
            if key.startswith(prefix):
                block = _block(key.removeprefix(prefix), counts)
                if block in (None, GENERAL) or block in specific:
                    kept[key] = _rows(key, value, [index])
    layers = {layer_of(module) for module in chosen.neuron_counts}
    for key, value in state.items():  # attention in the pair's layers
        module = key.removeprefix(PREFIX).partition(_MARK)[0]
        if _MARK in key and module not in config.neuron_counts and layer_of(module) in layers:
            kept[key] = value
    return chosen, kept


def _rows(key: str, value: torch.Tensor, indices: list[int]) -> torch.Tensor:
    """The rows of some pairs, of a tensor that has one row per pair; any other tensor as it is."""
    if _MARK in key and key.rpartition(".")[2] in ROW_PER_PAIR and value.shape[0] > 1:
        return value[indices].clone()
    return value


def _block(tensor_name: str, counts: Mapping[str, Any]) -> str | None:
    """The block that a tensor of an FFN belongs to; None for one that has a row per pair."""
    if tensor_name in ROW_PER_PAIR:
        return None
    blocks = [block for block in (GENERAL, *counts["specific"]) if tensor_name.startswith(f"{block}_")]
    return max(blocks, key=len)


def join(parts: Sequence[Part]) -> tuple[LanderConfig, State]:
    """Make config and state of one adapter of parts that belong together; see [`join_adapters`]."""
    first, config, state = parts[0]
    for folder, other, other_state in parts[1:]:
        check_same(first, config, folder, other, ("neuron_map_signature", "prompt", *config.FORM))
        assert isinstance(config, LanderConfig) and isinstance(other, LanderConfig)
        if (config.neuron_counts is None) != (other.neuron_counts is None):
            raise AdapterError("folders", [first, folder], "cannot be joined: only one was made with a neuron map.")
        doubles = set(config.language_pairs or ()) & set(other.language_pairs or ())
        if doubles or not config.language_pairs or not other.language_pairs:
            problem = f"need different pairs; both hold {sorted(doubles) or 'none'}."
            raise AdapterError("folders", [first, folder], problem)
        _add(config, state, other, other_state, folder)
    assert isinstance(config, LanderConfig)
    return config, state


def _add(config: LanderConfig, state: State, other: LanderConfig, other_state: State, folder: str) -> None:
    """Add another adapter to `config` and `state`."""
    rows = {key for key in other_state if key in state and _MARK in key and key.rpartition(".")[2] in ROW_PER_PAIR}
    state.update({key: torch.cat([state[key], other_state[key]]) for key in rows})
    add_tensors(state, {key: value for key, value in other_state.items() if key not in rows}, folder)
    config.language_pairs = [*(config.language_pairs or ()), *(other.language_pairs or ())]
    for module, counts in (other.neuron_counts or {}).items():
        assert config.neuron_counts is not None
        mine = config.neuron_counts.setdefault(module, {**counts, "specific": {}, "language_pairs": []})
        mine["specific"] = dict(sorted({**mine["specific"], **counts["specific"]}.items()))
        mine["language_pairs"] = [*mine["language_pairs"], *counts["language_pairs"]]
