"""The bottleneck adapter of Houlsby et al. (2019), a baseline of the paper that PEFT does not have."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

ATTENTION = ("self_attn", "self_attention", "attention", "attn")
FFN = ("mlp", "ffn")


class Bottleneck(nn.Module):
    """A sub-layer of a decoder layer with y + W_up relu(W_down y) behind it; W_up starts at zero.

    Args:
        base: The sub-layer.
        width: d, size of its output.
        size: Width of the bottleneck.
        like: A weight whose device is taken.
    """

    def __init__(self, base: nn.Module, width: int, size: int, like: torch.Tensor) -> None:
        super().__init__()
        self.base = base
        self.down = nn.Linear(width, size, device=like.device)
        self.up = nn.Linear(size, width, device=like.device)
        nn.init.zeros_(self.up.weight)
        nn.init.zeros_(self.up.bias)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        result = self.base(*args, **kwargs)
        states, *others = result if isinstance(result, tuple) else (result,)
        states = states + self.up(torch.relu(self.down(states.to(self.down.weight.dtype)))).to(states.dtype)
        return (states, *others) if isinstance(result, tuple) else states


def add_bottlenecks(model: nn.Module, size: int = 64) -> None:
    """Put a trainable bottleneck behind attention and FFN of every decoder layer, in place.

    Raises:
        ValueError: If the model has none under the usual names.
    """
    width = model.config.get_text_config().hidden_size  # type: ignore[union-attr, operator]
    places = [
        (name, module)
        for name, module in model.named_modules()
        if name.rpartition(".")[2] in (*ATTENTION, *FFN) and name.split(".")[-2].isdigit()
    ]
    if not places:
        raise ValueError(
            f"model={type(model).__name__!r}: no layer has a child named {', '.join((*ATTENTION, *FFN))}."
        )
    for name, module in places:
        model.set_submodule(name, Bottleneck(module, width, size, next(module.parameters())))
