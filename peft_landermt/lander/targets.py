"""Which modules of a model a LANDER adapter goes into, and whether the model is the one it was made for."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Sequence
from typing import Any, get_args

from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn

from ..attention import Attention, layer_of, no_attention, recognise_attention
from ..choices import Role
from ..errors import ArchitectureError, ConfigError, NeuronMapError
from ..ffn import EXPERTS, FFN, FFNLayout, find_ffns, list_ffns, recognise
from ..fingerprint import fingerprint
from ..neuron_map import NeuronMap
from ..routed import targets as routed
from ..routed.bases import check_fingerprint, without_adapters
from .config import LanderConfig
from .layer import LanderFFN
from .layout import BlockLayout
from .shared import LanderAttention


def default_targets(model: nn.Module, layout: FFNLayout | None = None) -> set[str]:
    """Return the last name segments of the model's FFNs; full names where other modules have the same segment, and
    where the FFN's projections sit on the decoder layer, whose last segment is a number."""
    ffns = find_ffns(without_adapters(model), layout)
    names = {ffn.name for ffn in ffns}
    segments = {name.rpartition(".")[2] for name in names}
    others = {
        name
        for name, _ in model.named_modules()
        if name.rpartition(".")[2] in segments and name not in names and ".base_layer" not in name
    }
    on_layers = any(segment.isdigit() for segment in segments)
    return names if others or on_layers else segments


def is_target(config: LanderConfig, key: str, defaults: set[str] | None) -> Any:
    """Tell whether an adapter goes into a module: what PEFT answers for it, which is true or a match where it does.

    Args:
        config: Of the adapter. Where it has neuron counts, only the FFNs that they name are targets.
        key: The module's name.
        defaults: Targets where the config names none and has no neuron counts; else not needed.
    """
    counts = config.neuron_counts
    if counts is not None and key not in counts:
        return False
    matched = config
    if config.target_modules is None:
        matched = copy.copy(config)
        targets = set(counts) if counts is not None else defaults
        assert targets is not None
        if key in targets and config.layers_to_transform is not None:
            # the FFN's projections sit on the decoder layer; PEFT looks for its index before the last dot
            targets, key = {"ffn"}, f"{key}.ffn"
        matched.target_modules = targets  # type: ignore[assignment]
    return routed.is_target(matched, key)


def as_ffn(module: nn.Module, key: str, layout: FFNLayout | None = None) -> FFN:
    """Describe a target module, by the layout that the user named if there is one.

    Raises:
        ArchitectureError: If it is no FFN, or has adapters of another method, or of another layout, inside.
    """
    if isinstance(module, LanderFFN):
        adapted = module.ffn(key)
        if layout not in (None, adapted.layout):
            raise ArchitectureError(
                "ffn_layout",
                layout.to_dict(),
                f"{key} has adapters with {adapted.layout.to_dict()}; delete them first, or use theirs.",
            )
        return adapted
    if EXPERTS in key.split("."):
        raise ArchitectureError(
            "target_modules", key, "is a part of a mixture of experts, which LANDER does not cover; leave it out."
        )
    ffn = recognise(module, key, layout)
    children = [module.get_submodule(name) for name in ffn.projections] if ffn is not None else [module]
    others = [
        type(part).__name__ for child in children for part in child.modules() if isinstance(part, BaseTunerLayer)
    ]
    if others:
        raise ArchitectureError(
            "target_modules", key, f"has adapters of another method ({others[0]}); merge them into the base first."
        )
    if ffn is None:
        raise ArchitectureError(
            "target_modules",
            key,
            f"is a {type(module).__name__}, not an FFN; LANDER adapts whole FFN modules, such as 'mlp'. If it is one, "
            "name its projections with ffn_layout.",
        )
    return ffn


def choose_attention(model: nn.Module, config: LanderConfig) -> list[Role] | None:
    """Tell what `attention_modules="auto"` stands for in a model: q, k, v and o, or with a warning None."""
    found = copy.copy(config)
    found.attention_modules = list(get_args(Role))
    try:
        for ffn in list_ffns(without_adapters(model), config.layout):
            attention_beside(model, ffn, found.attention_layout(ffn))
    except ArchitectureError as error:
        warnings.warn(f"only FFNs are adapted: {error}", stacklevel=2)
        return None
    return found.attention_modules


def attention_beside(model: nn.Module, ffn: FFN, layout: BlockLayout) -> dict[str, Attention]:
    """The attention modules in the layer of an FFN, of which an adapter tunes projections.

    Args:
        model: The model, with or without adapters.
        ffn: An FFN.
        layout: Of the adapter there.

    Returns:
        Attention by module name, as it is once the FFN is wrapped.

    Raises:
        ArchitectureError: There is none of a form that is known, or it has adapters of another method.
        ConfigError: The rank is larger than a projection's sizes.
    """
    found: dict[str, Attention] = {}
    layer = layer_of(ffn.name)
    for name, module in model.get_submodule(layer).named_modules(prefix=layer) if layout.attention else ():
        attention = module.attention if isinstance(module, LanderAttention) else None
        if attention is None and not any(name.startswith(f"{other}.") for other in found):
            attention = recognise_attention(module, name)
        if attention is None:
            continue
        if not isinstance(module, LanderAttention):
            others = [part for part in module.modules() if isinstance(part, BaseTunerLayer)]
            if others:
                problem = f"has adapters of another method ({type(others[0]).__name__})"
                raise ArchitectureError("attention_modules", name, f"{problem}; merge them into the base first.")
            if name.startswith(f"{ffn.name}.") and not name.startswith(f"{ffn.name}.base_layer."):
                # the FFN's projections sit on the layer, which will be wrapped
                name = f"{ffn.name}.base_layer.{name.removeprefix(f'{ffn.name}.')}"
        for role, rank in [(role, rank) for roles, rank in layout.attention.values() for role in roles]:
            if rank > max(attention.size(role)):
                problem = f"is larger than the sizes {attention.size(role)} of {name}, {role}"
                raise ConfigError("attention_rank", rank, f"{problem}; take a smaller one.")
        found[name] = attention
    if layout.attention and not found:
        raise no_attention(layer, [role for roles, _ in layout.attention.values() for role in roles])
    return found


def ffns_with_attention(model: nn.Module, adapted: Sequence[FFN], config: LanderConfig) -> Sequence[FFN]:
    """List the FFNs beside which attention may be tuned: those that are adapted, or all."""
    return list_ffns(without_adapters(model), config.layout) if config.adapts_all_attention else adapted


def check_options(config: LanderConfig, ffn: FFN) -> None:
    """Check options that not every FFN can have.

    Raises:
        ConfigError: The rank is larger than the model width, or the gate needs an FFN that is a module of its own.
    """
    ranks = [(name, getattr(config, name)) for name in ("general_rank", "specific_rank")]
    for name, rank in (*ranks, *(("specific_rank", addition.rank) for addition in config.added.values())):
        if rank is not None and rank > ffn.width:
            raise ConfigError(name, rank, f"is larger than the model width {ffn.width}; None means whole rows.")
    if config.car == "token" and not ffn.has_own_module:
        raise ConfigError(
            "car", "token", f"needs an FFN that is a module of its own, which {ffn.name} has not; choose another gate."
        )


def check_base(config: LanderConfig, model: nn.Module) -> None:
    """Check that names, sizes and weights are those of the base that a neuron map was made for.

    Raises:
        NeuronMapError: They are not.
        ConfigError: The weights cannot be compared because they hold a merged adapter.
    """
    if config.neuron_counts is None:
        return
    plain = without_adapters(model)
    modules = dict(model.named_modules())
    if isinstance(config.neuron_map, NeuronMap):
        available = len(find_ffns(plain, config.layout))
        if available != config.neuron_map.num_layers:
            raise NeuronMapError(
                "neuron_map", f"{config.neuron_map.num_layers} FFN layers", f"the model has {available}; detect on it."
            )
    for key, counts in config.neuron_counts.items():
        if key not in modules:
            raise NeuronMapError("neuron_map", key, "the model has no such module; detect neurons on this model.")
        ffn = as_ffn(modules[key], key, config.layout)
        for name, made_for, has in (("p", counts["neurons"], ffn.neurons), ("d", counts["width"], ffn.width)):
            if made_for != has:
                raise NeuronMapError(
                    "neuron_map", f"{key}: {name}={made_for}", f"the model has {name}={has}; detect neurons on it."
                )
    check_fingerprint(config, model, lambda: fingerprint(plain, config.layout), NeuronMapError, "FFN weights")
