"""What surrounds one call of a routed model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from peft.utils import AuxiliaryTrainingWrapper
from torch import nn

from .routing import Route, Routing


def batch_size(args: Sequence[Any], kwargs: dict[str, Any]) -> int | None:
    """Number of samples of a call, where it can be told."""
    named = [kwargs.get(name) for name in ("input_ids", "inputs", "inputs_embeds", "attention_mask")]
    tensors = [value for value in (*args, *named) if isinstance(value, torch.Tensor)]
    return int(tensors[0].shape[0]) if tensors else None


def drop_language_pairs(_module: nn.Module, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    return args, {name: value for name, value in kwargs.items() if name != "language_pairs"}


def route_saved_modules(model: nn.Module, adapter_names: Sequence[str]) -> Callable[[], None]:
    """Have every sample of a call pass through its own adapter's copy of the modules in `modules_to_save`.

    PEFT's wrapper does that when it is told the adapter of every sample; it is also told here where the active adapter
    has no copy of the module, for which PEFT switches it off. Samples whose adapter has no copy take the original.

    Args:
        model: The model inside the tuner.
        adapter_names: For every sample an adapter, or `__base__`.

    Returns:
        A function that undoes it.
    """
    undo: list[Callable[[], None]] = []

    def hook(module: AuxiliaryTrainingWrapper, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        names = [name if name in module._adapters else "__base__" for name in adapter_names]
        copies = len(args[0]) // len(names)  # beams, or sequences returned for one sample
        return args, {**kwargs, "adapter_names": [name for name in names for _ in range(copies)]}

    for module in model.modules():
        if isinstance(module, AuxiliaryTrainingWrapper):
            before = module._disable_adapters, module._active_adapter
            module._disable_adapters, module._active_adapter = False, []
            undo += [
                module.register_forward_pre_hook(hook, with_kwargs=True).remove,
                partial(_set_back, module, *before),
            ]

    def restore() -> None:
        for step in undo:
            step()

    return restore


def _set_back(module: AuxiliaryTrainingWrapper, disabled: bool, active: str | list[str]) -> None:
    module._disable_adapters, module._active_adapter = disabled, active


def bind_route_to_checkpoints(model: nn.Module, routing: Routing, route: Route | None) -> Any:
    """Have gradient checkpointing recompute every layer with the route and choice of pair of this call.

    The backward pass recomputes after the call has returned, when the routing state may be another one.

    Returns:
        A function that undoes it.
    """
    chosen = dict(routing.chosen)
    originals = [
        (module, module.__dict__["_gradient_checkpointing_func"])
        for module in model.modules()
        if module.training and "_gradient_checkpointing_func" in module.__dict__
    ]

    def routed(function: Any, *args: Any, **kwargs: Any) -> Any:
        before = routing.route, routing.chosen
        routing.route, routing.chosen = route, chosen
        try:
            return function(*args, **kwargs)
        finally:
            routing.route, routing.chosen = before

    def bound(original: Any, function: Any, *args: Any, **kwargs: Any) -> Any:
        return original(partial(routed, function), *args, **kwargs)

    for module, original in originals:
        module.__dict__["_gradient_checkpointing_func"] = partial(bound, original)

    def restore() -> None:
        for module, original in originals:
            module.__dict__["_gradient_checkpointing_func"] = original

    return restore
