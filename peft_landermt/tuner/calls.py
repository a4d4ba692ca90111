"""What surrounds one call of a routed model."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import nn

from .routing import Route, Routing


def batch_size(args: Sequence[Any], kwargs: dict[str, Any]) -> int | None:
    """Number of samples of a call, where it can be told."""
    named = [kwargs.get(name) for name in ("input_ids", "inputs", "inputs_embeds", "attention_mask")]
    tensors = [value for value in (*args, *named) if isinstance(value, torch.Tensor)]
    return int(tensors[0].shape[0]) if tensors else None


def drop_language_pairs(_module: nn.Module, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    return args, {name: value for name, value in kwargs.items() if name != "language_pairs"}


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
