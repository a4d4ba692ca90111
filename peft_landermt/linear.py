"""Linear layers of a base model, whatever their class: shape, weight, device."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import chain
from typing import Any

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

_FLOATS = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
_PACKS = "support_avx512bf16_for_cpu"
"""bitsandbytes' name for whether a layer packs its 4-bit weight on this CPU."""


def features(module: nn.Module) -> tuple[int, int] | None:
    """Return (in, out) features of a linear layer, quantized ones included; None for any other module."""
    if isinstance(module, Conv1D):
        return int(module.weight.shape[0]), int(module.weight.shape[1])
    inside, outside = getattr(module, "in_features", None), getattr(module, "out_features", None)
    if isinstance(inside, int) and isinstance(outside, int):
        return inside, outside
    return None


def weight_rows(module: nn.Module) -> torch.Tensor:
    """View the weight of a linear layer as (out, in)."""
    weight = module.weight
    assert isinstance(weight, torch.Tensor)
    return weight.t() if isinstance(module, Conv1D) else weight


def has_dense_weight(module: nn.Module) -> bool:
    """Tell whether the layer's weight is a plain tensor of floating-point numbers, which can be read and written:
    neither quantized, nor split over devices, nor waiting elsewhere (offloaded)."""
    weight = getattr(module, "weight", None)
    plain = isinstance(module, (nn.Linear, Conv1D)) and type(weight) in (torch.Tensor, nn.Parameter)
    return plain and weight.dtype in _FLOATS and not weight.is_meta  # type: ignore[union-attr]


def device_and_dtype(module: nn.Module) -> tuple[torch.device, torch.dtype]:
    """Return the device on which a layer computes, also while its weight is offloaded, and the type of its weight, or
    torch's default where that is no type to compute in (quantized)."""
    weight = getattr(module, "weight", None)
    stored = weight if weight is not None else next(chain(module.parameters(), module.buffers()))
    execution_device = getattr(getattr(module, "_hf_hook", None), "execution_device", None)
    device = torch.device(execution_device) if stored.is_meta and execution_device is not None else stored.device
    return device, weight.dtype if weight is not None and weight.dtype in _FLOATS else torch.get_default_dtype()


def is_plain_linear(module: nn.Module) -> bool:
    """Tell whether the layer is x W^T + b with a dense weight, and does nothing else; hooks, such as those of
    offloading, are something else."""
    hooked = module._forward_hooks or module._forward_pre_hooks or "forward" in module.__dict__
    plain = type(module) is Conv1D or type(module).forward is nn.Linear.forward
    return plain and not hooked and has_dense_weight(module)


def keep_unpacked(model: nn.Module) -> list[nn.Module]:
    """Keep bitsandbytes from packing 4-bit weights, and unpack those that it has packed.

    On a CPU with `avx512_bf16` it packs a weight at the first call in evaluation mode. No gradient passes a packed
    weight, and a saved or loaded state brings back its numbers but not the order of its scales.

    Returns:
        The layers that it would have packed, for `allow_packing`.
    """
    layers = [module for module in model.modules() if getattr(module, _PACKS, False)]
    for layer in layers:
        setattr(layer, _PACKS, False)
        if is_packed(layer):
            _unpack(layer)
    return layers


def allow_packing(layers: Iterable[nn.Module]) -> None:
    """Undo `keep_unpacked`; weights are packed again when they are called."""
    for layer in layers:
        setattr(layer, _PACKS, True)


def is_packed(layer: nn.Module) -> bool:
    """Tell whether bitsandbytes has packed the layer's weight."""
    state = getattr(getattr(layer, "weight", None), "quant_state", None)
    return bool(getattr(state, "packing_format_for_cpu", False))


def _unpack(layer: Any) -> None:
    state = layer.weight.quant_state
    scales = state.absmax  # bfloat16 (in / block size, out)
    layer.state_dict()  # bitsandbytes unpacks what it saves
    if not state.nested:
        state.absmax = scales.t().reshape(-1).float()
