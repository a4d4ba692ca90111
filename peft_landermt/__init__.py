"""LANDeRMT and LSLo: language-aware neurons, and language-specific LoRA, for translation, as a PEFT plugin.

Importing this package registers the PEFT types `LANDER` and `LSLO`; nothing else happens.
"""

from __future__ import annotations

import importlib
import sys
from pathlib import PurePath
from typing import TYPE_CHECKING, Any

from .version import __version__

if TYPE_CHECKING:
    from .detection import detect_neurons
    from .lander import (
        LanderConfig,
        LanderFFN,
        LanderModel,
        add_language_pairs,
        compose_language_pair,
        remove_language_pairs,
    )
    from .lslo import GradualPruning, LsloConfig, LsloModel, learned_index, subspace_demand
    from .neuron_map import NeuronMap
    from .routed.adapters import join_adapters, split_adapter
    from .routed.card import write_model_card
    from .routed.export import export_lora
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
    "GradualPruning": "lslo",
    "LanderConfig": "lander",
    "LanderFFN": "lander",
    "LanderModel": "lander",
    "LanderTrainer": "translation",
    "LsloConfig": "lslo",
    "LsloModel": "lslo",
    "NeuronMap": "neuron_map",
    "TEMPLATES": "translation",
    "TRANSLATION_PROMPT": "translation",
    "TranslationCollator": "translation",
    "add_language_pairs": "lander",
    "build_prompt": "translation",
    "chat_prompt": "translation",
    "compose_language_pair": "lander",
    "detect_neurons": "detection",
    "evaluate_translation": "translation",
    "export_lora": "routed.export",
    "hotswap_adapter": "routed.hotswap",
    "join_adapters": "routed.adapters",
    "learned_index": "lslo",
    "remove_language_pairs": "lander",
    "split_adapter": "routed.adapters",
    "subspace_demand": "lslo",
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
    from . import lslo  # noqa: F401, I001  registers; every command that needs PEFT imports it too
    from . import lander  # noqa: F401  the same

__all__ = [
    "TEMPLATES",
    "TRANSLATION_PROMPT",
    "GradualPruning",
    "LanderConfig",
    "LanderFFN",
    "LanderModel",
    "LanderTrainer",
    "LsloConfig",
    "LsloModel",
    "NeuronMap",
    "TranslationCollator",
    "__version__",
    "add_language_pairs",
    "build_prompt",
    "chat_prompt",
    "compose_language_pair",
    "detect_neurons",
    "evaluate_translation",
    "export_lora",
    "hotswap_adapter",
    "join_adapters",
    "learned_index",
    "remove_language_pairs",
    "split_adapter",
    "subspace_demand",
    "translate",
    "write_model_card",
]
