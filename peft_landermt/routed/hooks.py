"""What a base model keeps while it has adapters, until they are unloaded: each is put there once, for all calls."""

from __future__ import annotations

from functools import partial
from typing import Any

from torch import nn

from .call import Call, current_call, entered
from .routing import Routing

_FUNCTION = "_gradient_checkpointing_func"
"""Where transformers keeps what a module checkpoints its forward with."""


class CheckpointWithCall:
    """A checkpoint function that has the recomputation see the call of the forward pass.

    The backward pass recomputes a layer after the call has returned, and on a GPU in another thread.

    Args:
        original: The checkpoint function.
        routing: Routing of the model.
    """

    def __init__(self, original: Any, routing: Routing) -> None:
        self.original, self.routing = original, routing

    def __call__(self, function: Any, *args: Any, **kwargs: Any) -> Any:
        call = current_call(self.routing)
        return self.original(function if call is None else partial(_run, call, function), *args, **kwargs)


def _run(call: Call, function: Any, *args: Any, **kwargs: Any) -> Any:
    with entered(call):
        return function(*args, **kwargs)


def bind_calls_to_checkpoints(model: nn.Module, routing: Routing) -> None:
    """Give every module of a model that is checkpointed a [`CheckpointWithCall`]; once is enough."""
    for module in model.modules():
        function = module.__dict__.get(_FUNCTION)
        if function is not None and not isinstance(function, CheckpointWithCall):
            module.__dict__[_FUNCTION] = CheckpointWithCall(function, routing)


def drop_language_pairs(model: nn.Module) -> None:
    """Have a base model ignore `language_pairs`, which PEFT hands on to it where the config has no `task_type`."""
    if _drop not in model._forward_pre_hooks.values():
        model.register_forward_pre_hook(_drop, with_kwargs=True)


def _drop(_module: nn.Module, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    return args, {name: value for name, value in kwargs.items() if name != "language_pairs"}


def remove_hooks(model: nn.Module) -> None:
    """Undo [`bind_calls_to_checkpoints`] and [`drop_language_pairs`]."""
    for module in model.modules():
        if isinstance(function := module.__dict__.get(_FUNCTION), CheckpointWithCall):
            module.__dict__[_FUNCTION] = function.original
    for key in [key for key, hook in model._forward_pre_hooks.items() if hook is _drop]:
        del model._forward_pre_hooks[key]
        model._forward_pre_hooks_with_kwargs.pop(key, None)
