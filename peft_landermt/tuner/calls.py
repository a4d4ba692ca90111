"""What surrounds one call of a routed model."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from peft.utils import ModulesToSaveWrapper
from torch import nn

from ..errors import ConfigError
from .routing import Route, Routing


def batch_size(args: Sequence[Any], kwargs: dict[str, Any]) -> int | None:
    """Number of samples of a call, where it can be told."""
    named = [kwargs.get(name) for name in ("input_ids", "inputs", "inputs_embeds", "attention_mask")]
    tensors = [value for value in (*args, *named) if isinstance(value, torch.Tensor)]
    return int(tensors[0].shape[0]) if tensors else None


def drop_language_pairs(_module: nn.Module, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    return args, {name: value for name, value in kwargs.items() if name != "language_pairs"}


@contextmanager
def saved_modules_routed(model: nn.Module, adapter_names: Sequence[str] | None) -> Iterator[None]:
    """Inside, every sample passes through its own adapter's copy of the modules in `modules_to_save`.

    Samples whose adapter has no copy take the original. PEFT's wrapper knows the active adapter only, unless it is
    told the adapter of every sample.

    Args:
        model: The model inside the tuner.
        adapter_names: For every sample an adapter, or `__base__`; None leaves all to the active adapter.

    Raises:
        ConfigError: Samples have different adapters, and a module is none that PEFT can split by samples.
    """
    with ExitStack() as stack:
        for name, wrapper in model.named_modules() if adapter_names is not None else ():
            if not isinstance(wrapper, ModulesToSaveWrapper):
                continue
            copies = wrapper.modules_to_save.keys()
            names = [adapter if adapter in copies else "__base__" for adapter in adapter_names or ()]
            stack.callback(setattr, wrapper, "_active_adapter", wrapper._active_adapter)
            wrapper._active_adapter = [adapter for adapter in names[:1] if adapter in copies]  # none: the original
            if len(set(names)) > 1:
                hook = wrapper.register_forward_pre_hook(partial(_tell_adapters, name, names), with_kwargs=True)
                stack.callback(hook.remove)
        yield


def _tell_adapters(
    name: str, adapter_names: list[str], wrapper: ModulesToSaveWrapper, args: Any, kwargs: dict[str, Any]
) -> tuple[Any, dict[str, Any]]:
    """Forward pre-hook: the adapter of every row that enters a module, of which beams have several for a sample."""
    layers = (nn.Linear, nn.Embedding, nn.Conv1d, nn.Conv2d, nn.Conv3d)
    copies, rest = divmod(len(args[0]), len(adapter_names)) if args else (0, 0)
    if rest or not copies or not isinstance(wrapper.original_module, layers):
        raise ConfigError(
            "modules_to_save", name, "cannot take another adapter for each sample; name one adapter for all of a call."
        )
    return args, {**kwargs, "adapter_names": [adapter for adapter in adapter_names for _ in range(copies)]}


def bind_route_to_checkpoints(
    model: nn.Module, routing: Routing, route: Route | None, adapter_names: Sequence[str] | None = None
) -> Callable[[], None]:
    """Have gradient checkpointing recompute every layer with the route, choice of pair and adapters of this call.

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
            with saved_modules_routed(model, adapter_names):
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
