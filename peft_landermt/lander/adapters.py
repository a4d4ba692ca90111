"""The parts of an adapter for one pair, and one adapter of such parts."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch

from ..errors import AdapterError
from ..routed.adapters import Part, check_same
from ..routed.config import what_differs
from ..routed.folder import PREFIX
from ..routed.state import State
from .config import LanderConfig
from .deltas import ROW_PER_PAIR
from .layout import GENERAL, Counts
from .selecting import MARK


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
    differing = []
    for key, value in other_state.items():
        if key not in state:
            state[key] = value
        elif MARK in key and key.rpartition(".")[2] in ROW_PER_PAIR:
            state[key] = torch.cat([state[key], value])
        elif not torch.equal(state[key], value):
            differing.append(key)
    if differing:
        raise AdapterError("folders", folder, _blocks_that_differ(differing, other))
    config.language_pairs = [*(config.language_pairs or ()), *(other.language_pairs or ())]
    config.composed_pairs = [*(config.composed_pairs or ()), *(other.composed_pairs or ())] or None
    config.additions = _additions_together(config.additions or [], other.additions or [], folder) or None
    config.format_version = config.needed_format
    for module, counts in (other.neuron_counts or {}).items():
        assert config.neuron_counts is not None
        empty: dict[str, Any] = {"specific": {}, "language_pairs": []}
        mine = config.neuron_counts.setdefault(module, {**Counts(**{**counts, **empty})._asdict()})
        for name in ("specific", "on_general"):
            mine[name] = dict(sorted({**mine.get(name, {}), **counts.get(name, {})}.items()))
        mine["untuned"] = sorted({*mine.get("untuned", ()), *counts.get("untuned", ())})
        mine["language_pairs"] = [*mine["language_pairs"], *counts["language_pairs"]]
        config.neuron_counts[module] = Counts(**mine).to_dict()


def _blocks_that_differ(keys: list[str], other: LanderConfig) -> str:
    """Say which blocks of an adapter are not those of the others, and what can be done."""
    blocks = {GENERAL, *(block for counts in (other.neuron_counts or {}).values() for block in counts["specific"])}
    found = sorted(
        {
            max((block for block in blocks if name.startswith(f"{block}_")), key=len, default=name)
            for name in (key.partition(MARK)[2] or key.removeprefix(PREFIX) for key in keys)
        }
    )
    return (
        f"cannot be joined: its block {', '.join(found)} differs from the others', so it was trained apart from them "
        f"(first {keys[0].removeprefix(PREFIX)}). Load both into one model under two names, and name one for each "
        "sample with adapter_names; or add its pairs to the other with add_language_pairs."
    )


def _form(addition: dict[str, Any]) -> dict[str, Any]:
    """What an addition says of all its languages."""
    return {name: value for name, value in addition.items() if name not in ("languages", "language_pairs")}


def _additions_together(mine: list[dict[str, Any]], others: list[dict[str, Any]], folder: str) -> list[dict[str, Any]]:
    """Additions of two adapters, those of the same languages once."""
    together = copy.deepcopy(mine)
    for addition in others:
        rest = _form(addition)
        same = [each for each in together if set(each["languages"]) & set(addition["languages"])]
        if not same:
            # folders of one addition of several languages belong together again
            same = [each for each in together if _form(each) == rest]
        if not same:
            together.append(copy.deepcopy(addition))
            continue
        if _form(same[0]) != rest:
            names, _ = what_differs(_form(same[0]), rest)
            problem = (
                f"cannot be joined: {', '.join(addition['languages'])} was added with another {', '.join(names)}."
            )
            raise AdapterError("folders", folder, problem)
        for name in ("languages", "language_pairs"):
            same[0][name] = (
                sorted({*same[0][name], *addition[name]}) if name == "languages" else [*same[0][name], *addition[name]]
            )
    return together
