"""Checks of what an adapter is called and of the modules that it saves, before a model is touched."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from typing import Any

import regex
from peft.tuners.tuners_utils import BaseTuner
from peft.utils import AuxiliaryTrainingWrapper
from torch import nn

from ..errors import AdapterError, ConfigError
from .blocks import Blocks
from .config import RoutedConfig
from .layer import RoutedLayer

_IN_KEYS = ("base_model", "model", "base_layer", "original_module", "modules_to_save", "weight", "bias")
_LONGEST_NAME = 200
"""Bytes of an adapter's name; file systems allow 255."""
_SECONDS = 0.1
"""In which a pattern must match a name; there are some hundreds of names."""
_CONTAINERS = (nn.ModuleDict, nn.ModuleList, nn.ParameterDict, nn.ParameterList)


def check_adapter_name(adapter_name: str, configs: Mapping[str, RoutedConfig], model: nn.Module) -> None:
    """Check an adapter's name: PEFT drops what other adapters save under keys that have it as a part.

    Args:
        adapter_name: Its name.
        configs: Of all adapters of the model, this one included.
        model: The model.

    Raises:
        AdapterError: The name is empty, cannot be shown, or cannot be one of a module or folder; or it is a part of
            keys that PEFT saves beside an adapter's own.
    """
    if not adapter_name or "." in adapter_name:
        raise AdapterError("adapter_name", adapter_name, "must be without dots, since it becomes a part of keys.")
    if hasattr(nn.ModuleDict(), adapter_name) or not adapter_name.isprintable() or adapter_name == "__base__":
        raise AdapterError("adapter_name", adapter_name, "cannot be the name of a module; take another one.")
    if len(adapter_name.encode()) > _LONGEST_NAME or adapter_name.startswith("/") or "\\" in adapter_name:
        raise AdapterError(
            "adapter_name", adapter_name, "cannot be the name of the folder that it is saved to; take another one."
        )
    names = {name for config in configs.values() for name, _ in saved_modules(model, config)}
    embeddings = [getattr(model, f"get_{side}_embeddings", lambda: None)() for side in ("input", "output")]
    names |= {name for name, module in model.named_modules() if any(module is each for each in embeddings)}
    if adapter_name in {*_IN_KEYS, *(part for name in names for part in name.split("."))}:
        raise AdapterError(
            "adapter_name",
            adapter_name,
            "is a part of keys that PEFT saves with adapters, and it would drop these; take another name.",
        )


def is_target(config: RoutedConfig, key: str) -> Any:
    """Tell whether a config's names and patterns choose a module: what PEFT answers, which is true or a match where
    so.

    Patterns come from files, too, so they are matched within a time limit.

    Args:
        config: Of the adapter; it names `target_modules`.
        key: The module's name.

    Raises:
        ConfigError: Matching takes too long.
    """
    plain = copy.copy(config)
    plain.modules_to_save = None  # PEFT would quietly leave them out; check_saved_modules refuses both at once
    for field in ("target_modules", "exclude_modules"):
        if isinstance(pattern := getattr(config, field), str):
            try:
                found = regex.fullmatch(pattern, key, timeout=_SECONDS)
            except TimeoutError as error:
                raise ConfigError(field, pattern, f"takes too long to match {key!r}; name the modules.") from error
            setattr(plain, field, {key if found else "-"})  # no module has this name
    return BaseTuner._check_target_module_exists(plain, key)


def saved_modules(model: nn.Module, config: RoutedConfig) -> Iterator[tuple[str, nn.Module]]:
    """List the modules that `modules_to_save` names, as PEFT matches names, and as they are without adapters."""
    for name, module in model.named_modules():
        inside_wrapper = ".modules_to_save." in f".{name}." or ".original_module" in name
        if not inside_wrapper and any(name.endswith(wanted) for wanted in config.modules_to_save or ()):
            wrapped = isinstance(module, AuxiliaryTrainingWrapper)
            yield name, module.original_module if wrapped else module


def check_saved_modules(config: RoutedConfig, model: nn.Module, plan: Mapping[str, Blocks]) -> None:
    """Check that PEFT can save the modules of `modules_to_save` beside the adapter.

    Args:
        config: The adapter's config.
        model: The model.
        plan: What the adapter will hold, by module name.

    Raises:
        ConfigError: No module is there, or one is a container, or is or holds or lies in what is adapted.
    """
    adapted = {name: layer.projections for name, layer in model.named_modules() if isinstance(layer, RoutedLayer)}
    taken = [
        f"{name}.{projection}".rstrip(".").replace(".base_layer", "") + "."
        for name, projections in (*adapted.items(), *((name, blocks.projections) for name, blocks in plan.items()))
        for projection in projections
    ]
    found = list(saved_modules(model, config))
    if config.modules_to_save and not found:
        raise ConfigError("modules_to_save", config.modules_to_save, "names no module of the model; leave it out.")
    for name, module in found:
        if isinstance(module, _CONTAINERS):
            kind = type(module).__name__
            raise ConfigError("modules_to_save", config.modules_to_save, f"{name} is a {kind}; name what is in it.")
        plain = f"{name}.".replace(".base_layer", "")
        if any(plain.startswith(target) or target.startswith(plain) for target in taken):
            raise ConfigError(
                "modules_to_save", config.modules_to_save, f"{name} is adapted, or holds what is; name other modules."
            )
