"""LANDeRMT and LSLo: language-aware neurons, and language-specific LoRA, for translation, as a PEFT plugin.

Importing this package registers the PEFT types `LANDER` and `LSLO`; nothing else happens.
"""

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
from .routed.registration import register
from .translation import LanderTrainer, TranslationCollator, evaluate_translation, translate
from .version import __version__

register(LsloConfig, LsloModel)
register(LanderConfig, LanderModel)

__all__ = [
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
