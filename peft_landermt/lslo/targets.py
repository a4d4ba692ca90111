"""Which linear layers of a model an LSLo adapter goes into, and what it holds at each."""

from __future__ import annotations

import copy
from typing import Any, NamedTuple

from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn

from ..errors import ArchitectureError, ConfigError
from ..ffn import EXPERTS, check_modules_addressable
from ..fingerprint import fingerprint_of
from ..linear import features
from ..multimodal import language_modules
from ..routed import targets as routed
from ..seq2seq import is_encoder_decoder
from .config import LsloConfig
from .index import count_layers, position_of, word_of, words_in, written_out
from .layer import LsloLinear

_SLICED = ("dense", "dense_4h_to_h")
"""Layers whose weight BLOOM reads without calling them, where it is slow but exact."""


class Target(NamedTuple):
    """A linear layer that an adapter goes into.

    Attributes:
        word: Which language of a pair it is indexed by.
        ranks: Rank of every language that has factors there.
        inside: Number of inputs.
        outside: Number of outputs.
    """

    word: str
    ranks: dict[str, int]
    inside: int
    outside: int


def linear_layers(model: nn.Module) -> dict[str, nn.Module]:
    """List the linear layers in the numbered layers of a language model, or of that part of a multimodal one.

    Args:
        model: The base model, with or without adapters.

    Returns:
        The base's own layers by name; those of another method's adapters, where they have such. Layers of experts,
        which see only the tokens that are routed to them, are left out.
    """
    found: dict[str, nn.Module] = {}
    wrapped: str | None = None
    two_stacks = is_encoder_decoder(model)
    for name, module in language_modules(model):
        if wrapped is not None and name.startswith(f"{wrapped}."):
            continue
        wrapped = name if isinstance(module, BaseTunerLayer) else None
        segments = name.split(".")
        inside = EXPERTS in segments or "modules_to_save" in segments or "original_module" in segments
        if not inside and features(module) is not None and position_of(name, two_stacks) is not None:
            found[name] = module.base_layer if isinstance(module, LsloLinear) else module
    return found


def is_target(config: LsloConfig, key: str, layers: dict[str, nn.Module]) -> Any:
    """Tell whether an adapter goes into a module: what PEFT answers for it, which is true or a match where it does.

    Args:
        config: Of the adapter.
        key: The module's name.
        layers: The model's linear layers.
    """
    if config.target_modules is None:
        if key not in layers:
            return False
        config = copy.copy(config)
        # PEFT looks at layers_to_transform only where a part of the name is given
        config.target_modules = {key.rpartition(".")[2]}  # type: ignore[assignment]
    return routed.is_target(config, key)


def targets(config: LsloConfig, model: nn.Module, layers: dict[str, nn.Module]) -> dict[str, Target]:
    """List what an adapter goes into, by module name.

    Args:
        config: Of the adapter, with its index written out.
        model: The base model, with or without adapters.
        layers: Its linear layers.

    Raises:
        ArchitectureError: A target is no linear layer, lies in no numbered layer or in an expert, or has adapters of
            another method.
        ConfigError: A rank is larger than the layer's sizes.
    """
    found = {}
    two_stacks = is_encoder_decoder(model)
    held = {word: config.ranks_for(word) for word in words_in(config.index)}
    modules = dict(model.named_modules())
    for key, module in modules.items():
        if ".base_layer" in key or ".lslo_" in key or not is_target(config, key, layers):
            continue
        layer = layers.get(key)
        if isinstance(layer, BaseTunerLayer):
            problem = f"has adapters of another method ({type(layer).__name__}); merge them into the base first."
            raise ArchitectureError("target_modules", key, problem)
        if EXPERTS in key.split("."):
            problem = "is a part of a mixture of experts, which LSLo does not cover; leave it out."
            raise ArchitectureError("target_modules", key, problem)
        if layer is None:
            linear = features(module) is not None
            what = "lies in no numbered layer of the language model" if linear else f"is a {type(module).__name__}"
            problem = f"{what}; LSLo adapts linear layers such as 'model.layers.0.mlp.up_proj'."
            raise ArchitectureError("target_modules", key, problem)
        shape, place = features(layer), position_of(key, two_stacks)
        assert shape is not None and place is not None
        assert config.index is not None
        word = word_of(config.index, place)
        for language, rank in held[word].items():
            if rank > min(shape):
                raise ConfigError("rank", {language: rank}, f"is larger than the sizes {shape} of {key}.")
        parent: Any = model.get_submodule(key.rpartition(".")[0])
        slices = getattr(parent, "slow_but_exact", False) and getattr(parent, "pretraining_tp", 1) > 1
        if slices and key.rpartition(".")[2] in _SLICED:
            problem = f"{type(parent).__name__} reads its weight without calling it, so factors would be lost; "
            raise ArchitectureError("model", key, f"{problem}load the model with slow_but_exact=False.")
        found[key] = Target(word, held[word], *shape)
    fresh = [(key, layers[key], layers[key]) for key in found if not isinstance(modules[key], LsloLinear)]
    check_modules_addressable(model, fresh, ("linear layer", "factors"))
    return found


def filled(config: LsloConfig, model: nn.Module, layers: dict[str, nn.Module]) -> LsloConfig:
    """Copy a config, with its index written out for a model, and the model's fingerprint where it has none.

    Raises:
        ArchitectureError: The model has no numbered layers.
        ConfigError: The index does not fit the model.
    """
    made = copy.copy(config)
    made.index = written_out(config.index, count_layers(layers, is_encoder_decoder(model)))
    if config.base_fingerprint is None and config.source is None:
        made.base_fingerprint = fingerprint_of(layers.items())
    return made
