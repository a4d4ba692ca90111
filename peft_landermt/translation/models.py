"""What the translation wing asks of a model, whether it is a base model, a LANDER model or another PEFT model."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from torch import nn


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


def row_parameters(model: nn.Module) -> list[nn.Parameter]:
    """Return the delta rows that want a lower learning rate than the other parameters; empty for other models."""
    find = getattr(model, "row_parameters", None)
    return find() if callable(find) else []


def training_metrics(model: nn.Module) -> dict[str, float]:
    """Tell what training has done to LANDER adapters, as scalars for a log; nothing for other models."""
    find = getattr(model, "training_metrics", None)
    return find() if callable(find) else {}


def accepts_logits_to_keep(model: nn.Module) -> bool:
    """Tell whether the transformers model can be asked for the logits of its last positions only."""
    base = model.get_base_model() if hasattr(model, "get_base_model") else model  # type: ignore[operator]
    return "logits_to_keep" in inspect.signature(base.forward).parameters


@contextmanager
def saved_in_full(model: nn.Module) -> Iterator[None]:
    """Have adapters saved in float32 inside, whatever their configs ask for, so that training can resume exactly."""
    configs = [config for config in getattr(model, "peft_config", {}).values() if hasattr(config, "save_dtype")]
    wanted = [config.save_dtype for config in configs]
    try:
        for config in configs:
            config.save_dtype = "fp32"
        yield
    finally:
        for config, dtype in zip(configs, wanted, strict=True):
            config.save_dtype = dtype


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
