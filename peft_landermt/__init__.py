"""LANDeRMT: language-aware neurons for adapting language models to translation, as a PEFT plugin.

Importing this package registers the PEFT type `LANDER`; nothing else happens.
"""

from .detection import detect_neurons
from .neuron_map import NeuronMap
from .translation import LanderTrainer, TranslationCollator, evaluate_translation, translate
from .tuner import (
    LanderConfig,
    LanderFFN,
    LanderModel,
    hotswap_adapter,
    join_adapters,
    split_adapter,
    write_model_card,
)
from .tuner.registration import register
from .version import __version__

register()

__all__ = [
    "LanderConfig",
    "LanderFFN",
    "LanderModel",
    "LanderTrainer",
    "NeuronMap",
    "TranslationCollator",
    "__version__",
    "detect_neurons",
    "evaluate_translation",
    "hotswap_adapter",
    "join_adapters",
    "split_adapter",
    "translate",
    "write_model_card",
]
