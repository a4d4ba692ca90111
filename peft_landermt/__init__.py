"""LANDeRMT: language-aware neurons for adapting language models to translation, as a PEFT plugin.

Importing this package registers the PEFT type `LANDER`; nothing else happens.
"""

from __future__ import annotations

import importlib
import sys
from pathlib import PurePath
from typing import TYPE_CHECKING, Any

from .version import __version__

if TYPE_CHECKING:
    from .detection import detect_neurons
    from .lander import LanderConfig, LanderFFN, LanderModel, join_adapters, split_adapter
    from .neuron_map import NeuronMap
    from .routed.card import write_model_card
    from .routed.hotswap import hotswap_adapter
    from .translation import (
        TEMPLATES,
        TRANSLATION_PROMPT,
        LanderTrainer,
        TranslationCollator,
        build_prompt,
        chat_prompt,
        evaluate_translation,
        translate,
    )

_MODULES = {
    "LanderConfig": "lander",
    "LanderFFN": "lander",
    "LanderModel": "lander",
    "LanderTrainer": "translation",
    "NeuronMap": "neuron_map",
    "TEMPLATES": "translation",
    "TRANSLATION_PROMPT": "translation",
    "TranslationCollator": "translation",
    "build_prompt": "translation",
    "chat_prompt": "translation",
    "detect_neurons": "detection",
    "evaluate_translation": "translation",
    "hotswap_adapter": "routed.hotswap",
    "join_adapters": "lander",
    "split_adapter": "lander",
    "translate": "translation",
    "write_model_card": "routed.card",
}
"""Where each public name is; it is imported when it is first used."""


def __getattr__(name: str) -> Any:
    if name in ("detection", "translation"):
        return importlib.import_module(f".{name}", __name__)
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f".{_MODULES[name]}", __name__), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_MODULES})


def _is_command() -> bool:
    """Tell whether this process is the command `landermt`, whose help is there before PEFT and torch are imported."""
    if sys.argv[:1] == ["-m"]:
        return "peft_landermt.cli" in sys.orig_argv
    return PurePath(*sys.argv[:1]).name in ("landermt", "landermt.exe")


if not _is_command():
    from . import lander  # noqa: F401  registers; every command that needs PEFT imports it too

__all__ = [
    "TEMPLATES",
    "TRANSLATION_PROMPT",
    "LanderConfig",
    "LanderFFN",
    "LanderModel",
    "LanderTrainer",
    "NeuronMap",
    "TranslationCollator",
    "__version__",
    "build_prompt",
    "chat_prompt",
    "detect_neurons",
    "evaluate_translation",
    "hotswap_adapter",
    "join_adapters",
    "split_adapter",
    "translate",
    "write_model_card",
]
