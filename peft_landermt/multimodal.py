"""The language model inside a multimodal one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn
from transformers import PretrainedConfig


def language_modules(model: nn.Module, root: bool = False) -> list[tuple[str, nn.Module]]:
    """List the modules of a model that read or write text, by name; towers for images and sound and their projectors
    are not among them.

    transformers tells: a composite config says which of its parts are text, each part of the model has the config
    that it was made from, and every model class names the modalities that it reads.

    Args:
        model: The model.
        root: Whether the model itself, whose name is empty, may be among them.
    """
    named = [(name, module) for name, module in model.named_modules() if name or root]
    configs = next((texts for _, module in model.named_modules() if (texts := _text_configs(module))), None)
    if configs is not None:
        texts = [name for name, module in named if any(getattr(module, "config", None) is text for text in configs)]
        named = [(name, module) for name, module in named if _inside(name, texts)] if texts else named
    others = [name for name, module in named if "text" not in (getattr(module, "input_modalities", None) or "text")]
    return [(name, module) for name, module in named if not _inside(name, others)]


def _inside(name: str, parents: Sequence[str]) -> bool:
    return any(f"{name}.".startswith(f"{parent}.") for parent in parents)


def _text_configs(module: nn.Module) -> list[Any]:
    """The configs of the text stacks below a module; none if its config has no parts."""
    config = getattr(module, "config", None)
    return [text for text in _texts(config) if text is not config]


def _texts(config: Any) -> list[Any]:
    stacks = [getattr(config, side, None) for side in ("encoder", "decoder")]
    if all(isinstance(stack, PretrainedConfig) for stack in stacks):
        return [text for stack in stacks for text in _texts(stack)]
    if not isinstance(config, PretrainedConfig):
        return []
    text = config.get_text_config()
    return [config] if text is config else _texts(text)
