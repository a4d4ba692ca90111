"""Splitting an adapter into folders, of one language pair each, and joining such folders into one adapter again."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from peft import PeftConfig, PeftModel, get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict
from peft.mapping import PEFT_TYPE_TO_TUNER_MAPPING
from torch import nn

from ..errors import AdapterError
from ..outputs import files_in_place
from .config import RoutedConfig
from .folder import LoadedState, save_weights
from .state import State


class Part(NamedTuple):
    """An adapter that is to become a part of another.

    Attributes:
        folder: Where it was read.
        config: Its config.
        state: Its tensors.
    """

    folder: str
    config: RoutedConfig
    state: State


def split_adapter(
    model: PeftModel, output: str | os.PathLike[str], adapter_name: str = "default", by: str = "pair"
) -> dict[str, Path]:
    """Save every pair of an adapter as an adapter folder of its own: `output/en-de`, `output/de-en`, ...

    Each folder loads with `PeftModel.from_pretrained` and translates exactly as the adapter does for that pair. An
    LSLo adapter can also be split by language: `output/de` holds all that the adapter has of German, in whichever
    pairs; such folders are to be joined, in any selection.

    Args:
        model: A model with an adapter of this package.
        output: Folder for the folders; made if it does not exist.
        adapter_name: The adapter to split.
        by: `"pair"`, or for LSLo adapters `"language"`.

    Returns:
        The folder of every pair, or language.

    Raises:
        AdapterError: There is no such adapter, or it is none of this package.
        ConfigError: The adapter cannot be split so.
        LanguagePairError: The adapter was made without language pairs.
    """
    config = model.peft_config.get(adapter_name)
    if not isinstance(config, RoutedConfig):
        problem = f"name a LANDER or LSLO adapter; loaded: {list(model.peft_config)}."
        raise AdapterError("adapter_name", adapter_name, problem)
    tuner = PEFT_TYPE_TO_TUNER_MAPPING[config.peft_type]
    parts = tuner.parts(adapter_name, config, by)
    state = get_peft_model_state_dict(model, adapter_name=adapter_name)
    folders = {}
    for part in parts:
        chosen, chosen_state = tuner.restrict(config, state, part)
        if chosen.base_model_name_or_path is None:
            chosen.base_model_name_or_path = getattr(model.get_base_model(), "name_or_path", None) or None
        folder = Path(output) / part
        with files_in_place(folder) as written:
            save_weights(chosen_state, written)
            chosen.save_pretrained(str(written))
        folders[part] = folder
    return folders


def join_adapters(
    base: nn.Module, folders: Sequence[str | os.PathLike[str]], adapter_name: str = "default"
) -> PeftModel:
    """Load adapters that belong together as one adapter; what they share is stored once.

    Args:
        base: The base model; it is adapted in place.
        folders: Adapter folders, such as `split_adapter` writes.
        adapter_name: Name of the joined adapter.

    Returns:
        The base model with the joined adapter.

    Raises:
        AdapterError: Adapters of different bases, methods or options, LANDER adapters that hold the same pair or were
            made with different neuron maps, and adapters whose shared tensors differ (because each was trained alone)
            cannot be joined; the error names the difference. The base is untouched then.
    """
    if isinstance(folders, (str, os.PathLike)) or not folders:
        raise AdapterError("folders", folders, "expected a list of at least one adapter folder.")
    parts = [_read_folder(folder) for folder in folders]
    config, state = PEFT_TYPE_TO_TUNER_MAPPING[parts[0].config.peft_type].join(parts)
    config.inference_mode = False
    config.source = LoadedState(state)  # looked at before the base is touched
    model = get_peft_model(base, config, adapter_name=adapter_name)
    set_peft_model_state_dict(model, state, adapter_name=adapter_name)
    model.peft_config[adapter_name].source = None
    return model


def _read_folder(folder: str | os.PathLike[str]) -> Part:
    try:
        config = PeftConfig.from_pretrained(str(folder))
    except ValueError as error:
        raise AdapterError("folders", str(folder), f"cannot be read ({error}); name an adapter folder.") from error
    if not isinstance(config, RoutedConfig):
        problem = f"holds a {config.peft_type} adapter; only LANDER and LSLO ones are joined."
        raise AdapterError("folders", str(folder), problem)
    assert config.source is not None
    config.source.check_digest()
    return Part(str(folder), config, dict(config.source.tensors()))


def check_same(first: str, config: RoutedConfig, folder: str, other: RoutedConfig, fields: Sequence[str]) -> None:
    """Check that two adapters do not differ in their method nor in some fields of their configs.

    Raises:
        AdapterError: They do; it names the field.
    """
    for name in ("peft_type", *fields):
        if (mine := getattr(config, name)) != (theirs := getattr(other, name, None)):
            problem = f"cannot be joined: {name} is {mine!r} in the first, {theirs!r} in the second."
            raise AdapterError("folders", [first, folder], problem)


def add_tensors(state: State, others: Mapping[str, torch.Tensor], folder: str) -> None:
    """Add tensors to a state, in which those that it has must be the same.

    Raises:
        AdapterError: One is another.
    """
    for key, value in others.items():
        known = state.setdefault(key, value)
        if known.dtype != value.dtype or not torch.equal(known, value):
            problem = f"cannot be joined: {key} differs from the others', so it was trained apart from them."
            raise AdapterError("folders", folder, problem)
