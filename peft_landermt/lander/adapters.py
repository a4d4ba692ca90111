"""Splitting an adapter into one folder per language pair, and joining such folders into one adapter again."""

from __future__ import annotations

import copy
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from peft import PeftConfig, PeftModel, get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict
from torch import nn

from ..attention import layer_of
from ..errors import AdapterError, LanguagePairError
from ..outputs import files_in_place
from ..routed.folder import PREFIX, LoadedState, save_weights
from ..routed.state import State
from .config import LanderConfig
from .deltas import ROW_PER_PAIR
from .layout import GENERAL

_MARK = ".lander_blocks."


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
        pair_config, pair_state = restrict(config, state, pair)
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
    for key, value in state.items():  # attention, in the pair's layers or in all
        module = key.removeprefix(PREFIX).partition(_MARK)[0]
        here = config.attention_layers == "all" or layer_of(module) in layers
        if _MARK in key and module not in config.neuron_counts and here:
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
    for key, value in other_state.items():
        if key not in state:
            state[key] = value
        elif _MARK in key and key.rpartition(".")[2] in ROW_PER_PAIR:
            state[key] = torch.cat([state[key], value])
        elif not torch.equal(state[key], value):
            raise AdapterError(
                "folders",
                folder,
                f"cannot be joined: {key} differs from the others', so it was trained apart from them.",
            )
    config.language_pairs = [*(config.language_pairs or ()), *(other.language_pairs or ())]
    for module, counts in (other.neuron_counts or {}).items():
        assert config.neuron_counts is not None
        mine = config.neuron_counts.setdefault(module, {**counts, "specific": {}, "language_pairs": []})
        mine["specific"] = dict(sorted({**mine["specific"], **counts["specific"]}.items()))
        mine["language_pairs"] = [*mine["language_pairs"], *counts["language_pairs"]]
