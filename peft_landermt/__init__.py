"""LANDeRMT: language-aware neurons for adapting language models to translation, as a PEFT plugin.

Importing this package registers the PEFT type `LANDER`; nothing else happens.
"""

from .detection import detect_neurons
from .lander import (
    LanderConfig,
    LanderFFN,
    LanderModel,
    add_language_pairs,
    compose_language_pair,
    join_adapters,
    remove_language_pairs,
    split_adapter,
)
from .neuron_map import NeuronMap
from .routed.card import write_model_card
from .routed.hotswap import hotswap_adapter
from .routed.registration import register
from .translation import LanderTrainer, TranslationCollator, evaluate_translation, translate
from .version import __version__

register(LanderConfig, LanderModel)

__all__ = [
    "LanderConfig",
    "LanderFFN",
    "LanderModel",
    "LanderTrainer",
    "NeuronMap",
    "TranslationCollator",
    "__version__",
    "add_language_pairs",
    "compose_language_pair",
    "detect_neurons",
    "evaluate_translation",
    "hotswap_adapter",
    "join_adapters",
    "remove_language_pairs",
    "split_adapter",
    "translate",
    "write_model_card",
]
