"""Adapter state: what belongs to an adapter, whether loaded state fits it, and as what it is saved."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from peft import PeftModel
from torch import nn

from ..errors import AdapterError
from .blocks import NeuronBlocks
from .config import LanderConfig
from .layer import LanderFFN

_SHOWN = 3
ROW_PER_PAIR = ("gates", "awareness_sums", "mean_gradient", "mean_token_awareness")
"""Tensors that have one row for each pair: what gates are made of."""


def is_delta(key: str) -> bool:
    """Whether a key of a state dict names a delta: rows or factors, not indices nor what gates are made of."""
    name = key.rpartition(".")[2]
    return ".lander_blocks." in key and name not in ROW_PER_PAIR and not name.endswith("_neurons")


def adapter_tensors(model: nn.Module, adapter_name: str) -> Iterator[tuple[str, NeuronBlocks, torch.Tensor]]:
    """Model key, owner and tensor of everything an adapter holds in a model's FFNs."""
    for name, module in model.named_modules():
        if isinstance(module, LanderFFN) and adapter_name in module.lander_blocks:
            blocks = module.blocks(adapter_name)
            prefix = f"{name.removeprefix('_fsdp_wrapped_module.')}.lander_blocks.{adapter_name}"
            for key, tensor in (*blocks.named_parameters(), *blocks.named_buffers()):
                yield f"{prefix}.{key}", blocks, tensor


def find_missing(model: nn.Module, adapter_name: str, selected: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Tensors of an adapter that a selection by key names left out."""
    return {key: tensor.detach() for key, _, tensor in adapter_tensors(model, adapter_name) if key not in selected}


def validate_state(model: nn.Module, adapter_name: str, state_dict: Mapping[str, torch.Tensor]) -> None:
    """Check that loaded tensors are exactly what the adapter needs.

    Args:
        model: The model with the adapter in place.
        adapter_name: Name of the adapter.
        state_dict: Loaded tensors under the keys of the model.

    Raises:
        AdapterError: Tensors are missing or left over, shapes disagree with the config, values are not finite, or
            neuron indices are out of range, unsorted or in two blocks.
    """
    expected = {key: (blocks, tensor) for key, blocks, tensor in adapter_tensors(model, adapter_name)}
    remedy = "the file does not fit its adapter_config.json; download or save the adapter anew."
    missing = [key for key in expected if key not in state_dict]
    if missing:
        raise AdapterError("adapter_model.safetensors", f"lacks {missing[:_SHOWN]} of {len(missing)}", remedy)
    extra = [key for key in state_dict if ".lander_blocks." in key and key not in expected]
    if extra:
        raise AdapterError("adapter_model.safetensors", f"has {extra[:_SHOWN]} of {len(extra)}", remedy)
    for key, (_, tensor) in expected.items():
        loaded = state_dict[key]
        if loaded.shape != tensor.shape:
            raise AdapterError(key, tuple(loaded.shape), f"expected shape {tuple(tensor.shape)}; {remedy}")
        if loaded.is_floating_point() != tensor.is_floating_point():
            raise AdapterError(key, str(loaded.dtype), f"expected {tensor.dtype}; {remedy}")
        if loaded.is_floating_point() and not _is_finite(loaded):
            raise AdapterError(key, "NaN or infinity", "the adapter is broken; train it again or take another file.")
    owners = {id(blocks): (key.rpartition(".")[0], blocks) for key, (blocks, _) in expected.items()}
    for prefix, blocks in owners.values():
        _validate_neurons(prefix, blocks, state_dict)


def _is_finite(tensor: torch.Tensor) -> bool:
    """Whether all values are finite. The sum, many times faster to take, is finite only if they are; a sum that is not
    may also be one that is too large."""
    return bool(torch.isfinite(tensor.sum(dtype=torch.float32))) or bool(torch.isfinite(tensor).all())


def _validate_neurons(prefix: str, blocks: NeuronBlocks, state_dict: Mapping[str, torch.Tensor]) -> None:
    keys = [f"{prefix}.{key}" for key, _ in blocks.named_buffers() if key.endswith("_neurons")]
    for key in keys:
        neurons = state_dict[key].long()
        inside = bool(((neurons >= 0) & (neurons < blocks.layout.neurons)).all())
        if not inside or not bool((neurons[1:] > neurons[:-1]).all()):
            raise AdapterError(
                key, neurons[:8].tolist(), f"neuron indices must ascend within 0 to {blocks.layout.neurons - 1}."
            )
    together = torch.cat([state_dict[key].long().cpu() for key in keys])
    if len(together.unique()) != len(together):
        raise AdapterError(prefix, "a neuron in two blocks", "every neuron belongs to one block of an FFN.")


def take_back(model: nn.Module, adapter_name: str) -> None:
    """Remove an adapter whose weights were refused; without another one, the base model is as it was."""
    if not isinstance(model, PeftModel):
        return
    tuner = model.base_model
    if list(model.peft_config) != [adapter_name]:
        model.delete_adapter(adapter_name)
        for name, layer in list(tuner.model.named_modules()):
            if isinstance(layer, LanderFFN) and not layer.lander_blocks:
                tuner.model.set_submodule(name, layer.base_layer)
        return
    base = tuner.unload()
    for weight in tuner.__dict__["_trainable_before"]:
        weight.requires_grad_(True)
    for name in ("peft_config", "_hf_peft_config_loaded"):
        base.__dict__.pop(name, None)


_SAVE_TYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


def as_saved(key: str, value: torch.Tensor, config: LanderConfig, model: nn.Module) -> torch.Tensor:
    """A tensor of an adapter in the type that its config asks for; what gates are made of stays as it is."""
    if value.is_meta:
        raise AdapterError(
            key, "meta device", "the adapter is offloaded; load it into a base that is not, and save it."
        )
    if not is_delta(key):
        return value
    if config.save_dtype is not None:
        return value.to(_SAVE_TYPES[config.save_dtype])
    layer = next(module for module in model.modules() if isinstance(module, LanderFFN))
    return value.to(layer.device_and_dtype()[1])
