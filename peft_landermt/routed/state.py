"""Adapter state: which tensors an adapter has, whether loaded ones are exactly these, and as what they are saved."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import nullcontext
from typing import NamedTuple

import torch
from peft.utils import ModulesToSaveWrapper
from torch import nn

from ..errors import AdapterError
from .blocks import Blocks
from .config import RoutedConfig
from .folder import PREFIX
from .layer import RoutedLayer
from .targets import saved_modules

State = dict[str, torch.Tensor]
_SHOWN = 3
_FLOATS = {torch.float16, torch.bfloat16, torch.float32, torch.float64}
_LARGEST = torch.finfo(torch.float16).max
"""Of a trained weight: in half precision more is infinite."""
_FILE = "adapter_model.safetensors"
_SAVE_TYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


class Expected(NamedTuple):
    """What loaded tensors must be.

    Attributes:
        blocks: Blocks, with or without values, by the prefix of their keys.
        saved: Tensors of saved modules by key; only their shapes and types count.
        base: Tensors of the base model that the adapter brings along (resized embeddings) by key.
    """

    blocks: dict[str, Blocks]
    saved: Mapping[str, torch.Tensor]
    base: Mapping[str, torch.Tensor]


def _block_tensors(prefix: str, blocks: Blocks) -> Iterator[tuple[str, torch.Tensor]]:
    for name, tensor in (*blocks.named_parameters(), *blocks.named_buffers()):
        yield f"{prefix}{name}", tensor


def blocks_of(model: nn.Module, adapter_name: str) -> dict[str, Blocks]:
    """Return the blocks of an adapter in a model, by the prefix of their keys there."""
    found = {}
    for name, layer in model.named_modules():
        if isinstance(layer, RoutedLayer) and layer.holds(adapter_name):
            name = name.removeprefix("_fsdp_wrapped_module.")
            found[f"{name}.{layer.adapter_layer_names[0]}.{adapter_name}."] = layer.blocks(adapter_name)
    return found


def adapter_tensors(model: nn.Module, adapter_name: str) -> Iterator[tuple[str, torch.Tensor]]:
    """List everything that an adapter's blocks hold in a model, with the model's keys."""
    for prefix, blocks in blocks_of(model, adapter_name).items():
        yield from _block_tensors(prefix, blocks)


def keys_in_model(model: nn.Module, adapter_name: str) -> dict[str, str]:
    """Tell the model's key of every tensor of an adapter by its key in a file, with or without PEFT's prefix."""
    found = {}
    for prefix, blocks in blocks_of(model, adapter_name).items():
        in_file = prefix.removesuffix(f"{adapter_name}.")
        for key, _ in _block_tensors("", blocks):
            found[f"{in_file}{key}"] = found[f"{PREFIX}{in_file}{key}"] = f"{prefix}{key}"
    return found


def expected_in_file(config: RoutedConfig, model: nn.Module, plan: Mapping[str, Blocks], blocks_name: str) -> Expected:
    """Tell what an adapter file must hold, before the adapter is in the model.

    Args:
        config: The adapter's config.
        model: The model that it will go into.
        plan: What it will hold, by module name.
        blocks_name: Name of the attribute that holds blocks in a layer.
    """
    saved = {
        f"{PREFIX}{name}.{key}": tensor
        for name, module in saved_modules(model, config)
        for key, tensor in module.state_dict().items()
    }
    blocks = {f"{PREFIX}{name}.{blocks_name}.": each for name, each in plan.items()}
    return Expected(blocks, saved, _base_tensors(model, config))


def expected_in_model(model: nn.Module, config: RoutedConfig, adapter_name: str) -> Expected:
    """Tell what a state dict of an adapter must hold, in the keys of a model that has the adapter."""
    saved = {
        f"{name.removeprefix('_fsdp_wrapped_module.')}.modules_to_save.{adapter_name}.{key}": tensor
        for name, wrapper in model.named_modules()
        if isinstance(wrapper, ModulesToSaveWrapper) and adapter_name in wrapper.modules_to_save
        for key, tensor in wrapper.modules_to_save[adapter_name].state_dict().items()
    }
    return Expected(blocks_of(model, adapter_name), saved, _base_tensors(model, config))


def expected_to_replace(model: nn.Module, config: RoutedConfig, adapter_name: str) -> Expected:
    """Tell what an adapter file must hold to take the place of an adapter that is in a model."""
    blocks, saved, base = expected_in_model(model, config, adapter_name)
    return Expected(
        {prefix.removesuffix(f"{adapter_name}."): each for prefix, each in blocks.items()},
        {key.replace(f".modules_to_save.{adapter_name}.", "."): tensor for key, tensor in saved.items()},
        base,
    )


def _base_tensors(model: nn.Module, config: RoutedConfig) -> State:
    """Tensors of the embedding layers that the config says the file holds; PEFT saves them where they were resized."""
    found = {}
    for name in config.embedding_layers or ():
        names = [name, f"{PREFIX}{name}"]
        module = next((module for each, module in model.named_modules() if each in names), None)
        if module is None or not isinstance(module, (nn.Embedding, nn.Linear)):
            raise AdapterError("embedding_layers", name, "is no embedding layer of the model; load another base.")
        found.update({f"{PREFIX}{name}.{key}": tensor for key, tensor in module.state_dict().items()})
    return found


def check_state(
    state: Mapping[str, torch.Tensor],
    blocks: Mapping[str, Blocks],
    saved: Mapping[str, torch.Tensor],
    base: Mapping[str, torch.Tensor],
    *,
    others_loaded: bool,
) -> None:
    """Check that loaded tensors are exactly what an adapter needs.

    Args:
        state: Loaded tensors.
        blocks: See [`Expected`].
        saved: See [`Expected`].
        base: See [`Expected`].
        others_loaded: Whether the model has other adapters, which the base must not change under.

    Raises:
        AdapterError: Tensors are missing or left over, shapes or types disagree with the config, values are not
            finite or too large, neuron indices cannot be, or the base would change under other adapters.
    """
    ours = {key: tensor for prefix, each in blocks.items() for key, tensor in _block_tensors(prefix, each)}
    expected = {**ours, **saved, **base}
    remedy = "the file does not fit its adapter_config.json; download or save the adapter anew."
    for key in saved:
        if key not in state:
            raise AdapterError("modules_to_save", key.rpartition(".")[0], f"{_FILE} holds no weights of it; {remedy}")
    missing = [key for key in expected if key not in state]
    if missing:
        raise AdapterError(_FILE, f"lacks {missing[:_SHOWN]} of {len(missing)}", remedy)
    extra = [key for key in state if key not in expected]
    if extra:
        raise AdapterError(_FILE, f"has {extra[:_SHOWN]} of {len(extra)}", f"which are not the adapter's: {remedy}")
    for key, tensor in expected.items():
        loaded = state[key]
        if loaded.shape != tensor.shape:
            raise AdapterError(key, tuple(loaded.shape), f"expected shape {tuple(tensor.shape)}; {remedy}")
        if loaded.dtype != tensor.dtype and not {loaded.dtype, tensor.dtype} <= _FLOATS:
            raise AdapterError(key, str(loaded.dtype), f"expected {tensor.dtype}; {remedy}")
        if loaded.is_floating_point() and loaded.numel():
            smallest, largest = (float(value) for value in loaded.aminmax())
            if not max(-smallest, largest) < math.inf:  # NaN is neither
                broken = "the adapter is broken; train it again or take another file."
                raise AdapterError(key, "NaN or infinity", broken)
            if max(-smallest, largest) > _LARGEST and (key not in ours or isinstance(tensor, nn.Parameter)):
                raise AdapterError(key, max(-smallest, largest), f"no weight is beyond {_LARGEST}; {remedy}")
    for prefix, each in blocks.items():
        each.check_values(prefix, state)
    for key, tensor in base.items() if others_loaded else ():
        if not torch.equal(state[key].to(tensor.device, tensor.dtype), tensor):
            raise AdapterError(
                key, "another tensor", "would change the base under the adapters that are loaded; load it first."
            )


def check_can_be_written(model: nn.Module, config: RoutedConfig, adapter_name: str, state: State) -> None:
    """Check that tensors can be written into an adapter that is in a model, now.

    Args:
        model: The model.
        config: The adapter's config.
        adapter_name: Its name.
        state: The tensors, in the model's keys.

    Raises:
        AdapterError: They are not exactly the adapter's, or it is merged.
        ConcurrencyError: Another thread's call is in progress.
    """
    layers = [layer for layer in model.modules() if isinstance(layer, RoutedLayer)]
    with layers[0].routing.writing("loading weights") if layers else nullcontext():
        pass  # the weights are written by PEFT, after this
    if any(adapter_name in layer.merged_adapters for layer in layers):
        raise AdapterError("adapter_name", adapter_name, "is merged into the base; call unmerge_adapter() first.")
    others = [name for name in model.peft_config if name != adapter_name]  # type: ignore[union-attr]
    check_state(state, *expected_in_model(model, config, adapter_name), others_loaded=bool(others))


def as_saved(key: str, value: torch.Tensor, config: RoutedConfig, model: nn.Module) -> torch.Tensor:
    """Return a tensor of an adapter in the type that its config asks for; what is no delta stays as it is."""
    if value.is_meta:
        raise AdapterError(
            key, "meta device", "the adapter is offloaded; load it into a base that is not, and save it."
        )
    if not config.is_delta(key):
        return value
    if config.save_dtype is not None:
        return value.to(_SAVE_TYPES[config.save_dtype])
    layer = next(module for module in model.modules() if isinstance(module, RoutedLayer))
    return value.to(layer.device_and_dtype()[1])
