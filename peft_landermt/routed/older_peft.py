"""Saving and loading with PEFT before 0.21, which asks no tuner which tensors are an adapter's and where they go."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Mapping
from typing import Any

import peft
import torch
from peft.mapping import PEFT_TYPE_TO_TUNER_MAPPING
from peft.tuners.tuners_utils import BaseTuner
from peft.utils import AuxiliaryTrainingWrapper

from .config import RoutedConfig
from .state import adapter_tensors, blocks_of


def have_tuners_asked() -> None:
    """Have PEFT's functions ask our tuners, as PEFT does itself from 0.21 on."""
    if hasattr(BaseTuner, "_get_adapter_state_dict"):
        return
    for name, ours in (("get_peft_model_state_dict", _get_state), ("set_peft_model_state_dict", _set_state)):
        original = getattr(peft, name)
        asking = functools.wraps(original)(functools.partial(ours, original))
        for module_name, module in list(sys.modules.items()):
            if module_name.partition(".")[0] == "peft" and vars(module).get(name) is original:
                setattr(module, name, asking)


def _get_state(
    original: Callable[..., Any],
    model: Any,
    state_dict: Mapping[str, torch.Tensor] | None = None,
    adapter_name: str = "default",
    unwrap_compiled: bool = False,
    save_embedding_layers: bool | str = "auto",
) -> Any:
    unwrapped = getattr(model, "_orig_mod", model) if unwrap_compiled else model
    config = unwrapped.peft_config[adapter_name]
    chosen: dict[str, torch.Tensor] = {}
    if isinstance(config, RoutedConfig):
        state_dict = dict(unwrapped.state_dict() if state_dict is None else state_dict)
        tuner = PEFT_TYPE_TO_TUNER_MAPPING[config.peft_type]
        chosen = tuner._get_adapter_state_dict(unwrapped, config, adapter_name, state_dict, [])
        others = {key for name in unwrapped.peft_config for key, _ in adapter_tensors(unwrapped, name)}
        state_dict = {**{key: value for key, value in state_dict.items() if key not in others}, **chosen}
    found = original(model, state_dict, adapter_name, unwrap_compiled, save_embedding_layers)
    for prefix in blocks_of(unwrapped, adapter_name) if chosen else ():
        # PEFT 0.20 leaves out what has another adapter's name in it, such as layer 1 for one named "1"
        in_file = prefix.removesuffix(f"{adapter_name}.")
        found.update({in_file + key[len(prefix) :]: chosen[key] for key in chosen if key.startswith(prefix)})
    return found


def _set_state(
    original: Callable[..., Any],
    model: Any,
    peft_model_state_dict: dict[str, torch.Tensor],
    adapter_name: str = "default",
    ignore_mismatched_sizes: bool = False,
    low_cpu_mem_usage: bool = False,
) -> Any:
    config = model.peft_config[adapter_name]
    if not isinstance(config, RoutedConfig):
        return original(model, peft_model_state_dict, adapter_name, ignore_mismatched_sizes, low_cpu_mem_usage)
    state = dict(peft_model_state_dict)
    for name, wrapper in model.named_modules():
        if isinstance(wrapper, AuxiliaryTrainingWrapper):
            name = name.removeprefix("_fsdp_wrapped_module.")
            for in_file, in_model in wrapper.adapter_state_dict_load_map(adapter_name).items():
                state[f"{name}.{in_model}"] = state.pop(f"{name}.{in_file}")
    tuner = PEFT_TYPE_TO_TUNER_MAPPING[config.peft_type]
    state = tuner._remap_adapter_state_dict_for_load(model, config, adapter_name, state)
    result = model.load_state_dict(state, strict=False, assign=low_cpu_mem_usage)
    for module in model.modules() if low_cpu_mem_usage else ():
        if hasattr(module, "_move_adapter_to_device_of_base_layer"):
            module._move_adapter_to_device_of_base_layer(adapter_name)
    return result
