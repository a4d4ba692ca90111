"""What the translation wing asks of a model, whether it is a base model, a LANDER model or another PEFT model."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn

from ..errors import ConfigError
from .templates import TEMPLATES


def routed_pairs(model: nn.Module) -> list[str]:
    """Return pairs that the model's active adapters route by; empty for a base model and for other PEFT methods."""
    return list(getattr(model, "routed_language_pairs", ()))


def routing_arguments(
    model: nn.Module, language_pairs: Sequence[str], adapter_names: Sequence[str] | None
) -> dict[str, Any]:
    """Tell what a call is to be given so that every sample takes its pair; nothing for other models.

    Raises:
        LanguagePairError: The model does not serve a pair.
    """
    find = getattr(model, "routing_arguments", None)
    return find(language_pairs, adapter_names) if callable(find) else {}


def scale_rates(model: nn.Module, optimizer: torch.optim.Optimizer, rates: Mapping[str, float]) -> None:
    """Move an adapter's parameters into groups of their own, with the learning rates of their kinds.

    Args:
        model: The model; others than LANDER models are left alone.
        optimizer: Its optimizer, whose groups have the learning rate that the ratios are of.
        rates: Ratios by kind.
    """
    find = getattr(model, "parameter_groups", None)
    for group in find(1.0, rates) if callable(find) else ():
        scale_rate(optimizer, group["params"], group["lr"])


def scale_rate(optimizer: torch.optim.Optimizer, parameters: Iterable[nn.Parameter], ratio: float) -> None:
    """Move parameters into groups of their own, with a ratio of the learning rate that they had."""
    chosen = {id(parameter) for parameter in parameters}
    for group in list(optimizer.param_groups) if ratio != 1 else ():
        moved = [parameter for parameter in group["params"] if id(parameter) in chosen]
        if moved:
            group["params"] = [parameter for parameter in group["params"] if id(parameter) not in chosen]
            optimizer.add_param_group({**group, "params": moved, "lr": group["lr"] * ratio})


def training_metrics(model: nn.Module) -> dict[str, float]:
    """Tell what training has done to LANDER adapters, as scalars for a log; nothing for other models."""
    find = getattr(model, "training_metrics", None)
    return find() if callable(find) else {}


def accepts(model: nn.Module, *names: str) -> bool:
    """Tell whether the transformers model's forward has arguments of these names."""
    base = model.get_base_model() if hasattr(model, "get_base_model") else model  # type: ignore[operator]
    return set(names) <= inspect.signature(base.forward).parameters.keys()


def prompt_of(model: nn.Module, default: str | None = None, adapter_name: str | None = None) -> str | None:
    """Return the template that an adapter was trained with.

    Args:
        model: Any model.
        default: What is returned for a base, and for adapters that keep none.
        adapter_name: One of its adapters; the active one by default.

    Raises:
        ConfigError: Several adapters are active, and were trained with different templates.
    """
    configs = getattr(model, "peft_config", {})
    names = _active_adapters(model) if adapter_name is None else [adapter_name]
    kept = {name: getattr(configs.get(name), "prompt", None) or default for name in names}
    if len(set(kept.values())) > 1:
        raise ConfigError("template", kept, "the active adapters were trained with different ones; give one.")
    return next(iter(kept.values()), default)


def keep_prompt(model: nn.Module, prompt: str | None) -> None:
    """Note in the active adapters, where they are LANDER ones, what they are trained with.

    Raises:
        ConfigError: Pairs that an adapter had before it got others were trained with another template.
    """
    for name in _active_adapters(model):
        config = model.peft_config[name]  # type: ignore[index]
        if hasattr(config, "prompt") and config.prompt != prompt:
            # without one, translation uses the first of the default templates
            if getattr(config, "additions", None) and (config.prompt or TEMPLATES[0]) != prompt:
                earlier = f"templates=[{config.prompt!r}]" if config.prompt else "the default templates"
                remedy = f"the pairs that adapter {name!r} had before were trained with another; give {earlier}."
                raise ConfigError("template", prompt, remedy)
            config = copy.copy(config)  # the user may hold the other
            config.prompt = prompt
            model.peft_config[name] = config  # type: ignore[operator, index]


def _active_adapters(model: nn.Module) -> list[str]:
    """List names of the adapters that a call goes through; none for a base model, or where they are switched off."""
    configs: Any = getattr(model, "peft_config", {})
    layers = [module for module in model.modules() if isinstance(module, BaseTunerLayer)]
    if not configs or any(layer.disable_adapters for layer in layers):
        return []
    active = getattr(model, "active_adapters", [])
    return [name for name in (active() if callable(active) else active) if name in configs]


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Have evaluation mode inside, and every module in its own mode again outside."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True
