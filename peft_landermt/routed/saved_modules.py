"""Modules of `modules_to_save` in calls that name an adapter for each sample."""

from __future__ import annotations

from typing import Any

import torch
from peft.utils import ModulesToSaveWrapper
from torch import nn

from ..errors import ConfigError
from .call import current_call
from .routing import BASE, Routing

SPLIT_BY_SAMPLES = (nn.Linear, nn.Embedding, nn.Conv1d, nn.Conv2d, nn.Conv3d)
"""What PEFT can call with another adapter for each sample."""


def route_saved_modules(model: nn.Module, routing: Routing) -> None:
    """Send every sample through its own adapter's copy of a saved module; PEFT's wrapper knows the active one only.

    A sample whose adapter has no copy takes the original.

    Args:
        model: The model inside the tuner; saved modules that are routed already stay so.
        routing: Its routing.
    """
    for name, wrapper in model.named_modules():
        if isinstance(wrapper, ModulesToSaveWrapper) and "forward" not in wrapper.__dict__:
            wrapper.forward = _ForwardBySample(wrapper, name, routing)


class _ForwardBySample:
    def __init__(self, wrapper: ModulesToSaveWrapper, name: str, routing: Routing) -> None:
        self.wrapper, self.name, self.routing = wrapper, name, routing

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Forward of the saved module.

        Raises:
            ConfigError: Samples have different adapters, and the module is none that PEFT can split by samples.
        """
        wrapper, call = self.wrapper, current_call(self.routing)
        if call is None or call.samples is None:
            return type(wrapper).forward(wrapper, *args, **kwargs)
        copies = wrapper.modules_to_save
        names = [to[0] if to is not None and to[0] in copies else BASE for to in call.samples]
        if len(set(names)) == 1:
            module = wrapper.original_module if names[0] == BASE else copies[names[0]]
            return module(*args, **kwargs)
        beams, rest = divmod(len(args[0]), len(names)) if args and isinstance(args[0], torch.Tensor) else (0, 0)
        if rest or not beams or not isinstance(wrapper.original_module, SPLIT_BY_SAMPLES):
            raise ConfigError(
                "modules_to_save",
                self.name,
                "cannot take another adapter for each sample; name one adapter for all of a call.",
            )
        expanded = [name for name in names for _ in range(beams)]
        return wrapper._mixed_batch_forward(*args, adapter_names=expanded, **kwargs)
