"""What adapters are for: corpora, training, translating and scoring."""

from .collator import TranslationCollator
from .decoding import translate
from .scoring import TranslationScores, evaluate_translation, score_translations
from .templates import TEMPLATES
from .trainer import LanderTrainer

__all__ = [
    "TEMPLATES",
    "LanderTrainer",
    "TranslationCollator",
    "TranslationScores",
    "evaluate_translation",
    "score_translations",
    "translate",
]
