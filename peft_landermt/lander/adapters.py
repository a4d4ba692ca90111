"""Splitting an adapter into one folder per language pair, and joining such folders into one adapter again."""

from __future__ import annotations

import copy
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from peft import PeftConfig, PeftModel, get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict
from torch import nn

from ..errors import AdapterError, LanguagePairError
from ..outputs import files_in_place
from ..routed.folder import PREFIX, LoadedState, save_weights
from ..routed.state import State
from .config import LanderConfig
from .deltas import ROW_PER_PAIR
from .layout import GENERAL, Counts
from .selecting import MARK, for_pairs, tensors_for_pairs


def split_adapter(model: PeftModel, output: str | os.PathLike[str], adapter_name: str = "default") -> dict[str, Path]:
    """Save every pair of an adapter as an adapter folder of its own: `output/en-de`, `output/de-en`, ...

    Each folder loads with `PeftModel.from_pretrained` and translates exactly as the adapter does for that pair.

    Args:
        model: A model with a LANDER adapter.
        output: Folder for the folders; made if it does not exist.
        adapter_name: The adapter to split.

    Returns:
        The folder of every pair.

    Raises:
        AdapterError: There is no such adapter, or it is not a LANDER adapter.
        LanguagePairError: The adapter was made without language pairs.
    """
    config = model.peft_config.get(adapter_name)
    if not isinstance(config, LanderConfig):
        raise AdapterError("adapter_name", adapter_name, f"name a LANDER adapter; loaded: {list(model.peft_config)}.")
    if not config.language_pairs:
        raise LanguagePairError("language_pairs", None, f"adapter {adapter_name!r} was made without language pairs.")
    state = get_peft_model_state_dict(model, adapter_name=adapter_name)
    folders = {}
    for pair in config.language_pairs:
        pair_config = for_pairs(config, [pair])
        pair_config.inference_mode = True
        pair_state = tensors_for_pairs(config, pair_config, state)
        if pair_config.base_model_name_or_path is None:
            pair_config.base_model_name_or_path = getattr(model.get_base_model(), "name_or_path", None) or None
        folder = Path(output) / pair
        with files_in_place(folder) as written:
            save_weights(pair_state, written)
            pair_config.save_pretrained(str(written))
        folders[pair] = folder
    return folders


def join_adapters(
    base: nn.Module, folders: Sequence[str | os.PathLike[str]], adapter_name: str = "default"
) -> PeftModel:
    """Load pair adapters that belong together as one adapter; blocks that they share are stored once.

    Args:
        base: The base model; it is adapted in place.
        folders: Adapter folders, such as `split_adapter` writes.
        adapter_name: Name of the joined adapter.

    Returns:
        The base model with the joined adapter.

    Raises:
        AdapterError: Adapters of different bases, neuron maps or options, adapters that hold the same pair, and
            adapters whose shared blocks differ (because each was trained alone) cannot be joined; the error names the
            difference. The base is untouched then.
    """
    if isinstance(folders, (str, os.PathLike)) or not folders:
        raise AdapterError("folders", folders, "expected a list of at least one adapter folder.")
    loaded = [(str(folder), *_read_folder(folder)) for folder in folders]
    first, config, state = loaded[0]
    config, state = copy.copy(config), dict(state)
    config.neuron_counts = copy.deepcopy(config.neuron_counts)
    for folder, other, other_state in loaded[1:]:
        _check_same(first, config, folder, other)
        _join(config, state, other, other_state, folder)
    config.inference_mode = False
    config.source = LoadedState(state)  # looked at before the base is touched
    model = get_peft_model(base, config, adapter_name=adapter_name)
    set_peft_model_state_dict(model, state, adapter_name=adapter_name)
    config.source = None
    return model


def _read_folder(folder: str | os.PathLike[str]) -> tuple[LanderConfig, State]:
    try:
        config = PeftConfig.from_pretrained(str(folder))
    except ValueError as error:
        raise AdapterError("folders", str(folder), f"cannot be read ({error}); name an adapter folder.") from error
    if not isinstance(config, LanderConfig):
        raise AdapterError("folders", str(folder), f"holds a {config.peft_type} adapter; only LANDER ones are joined.")
    assert config.source is not None
    config.source.check_digest()
    return config, dict(config.source.tensors())


def _check_same(first: str, config: LanderConfig, folder: str, other: LanderConfig) -> None:
    for name in ("neuron_map_signature", "prompt", *config.FORM):
        if getattr(config, name) != getattr(other, name):
            raise AdapterError(
                "folders",
                [first, folder],
                f"cannot be joined: {name} is {getattr(config, name)!r} in the first, {getattr(other, name)!r} in the "
                "second.",
            )
    if (config.neuron_counts is None) != (other.neuron_counts is None):
        raise AdapterError("folders", [first, folder], "cannot be joined: only one was made with a neuron map.")
    doubles = set(config.language_pairs or ()) & set(other.language_pairs or ())
    if doubles or not config.language_pairs or not other.language_pairs:
        raise AdapterError("folders", [first, folder], f"need different pairs; both hold {sorted(doubles) or 'none'}.")


def _join(config: LanderConfig, state: State, other: LanderConfig, other_state: State, folder: str) -> None:
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
        raise AdapterError("folders", folder, _what_differs(differing, other))
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


def _what_differs(keys: list[str], other: LanderConfig) -> str:
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


def _additions_together(mine: list[dict[str, Any]], others: list[dict[str, Any]], folder: str) -> list[dict[str, Any]]:
    """Additions of two adapters, those of the same languages once."""
    together = copy.deepcopy(mine)
    for addition in others:
        rest = {name: value for name, value in addition.items() if name not in ("languages", "language_pairs")}
        same = [each for each in together if set(each["languages"]) & set(addition["languages"])]
        if not same:
            # folders of one addition of several languages belong together again
            same = [each for each in together if rest.items() <= each.items()]
        if not same:
            together.append(copy.deepcopy(addition))
            continue
        if not rest.items() <= same[0].items():
            names = [name for name in rest if rest[name] != same[0][name]]
            problem = (
                f"cannot be joined: {', '.join(addition['languages'])} was added with another {', '.join(names)}."
            )
            raise AdapterError("folders", folder, problem)
        for name in ("languages", "language_pairs"):
            same[0][name] = (
                sorted({*same[0][name], *addition[name]}) if name == "languages" else [*same[0][name], *addition[name]]
            )
    return together
