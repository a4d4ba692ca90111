"""What adapters are for: corpora, training, translating and scoring."""

from .cleaning import CleaningReport, clean
from .collator import TranslationCollator
from .corpus import Corpus, TranslationExample, read_corpus, read_dataset, read_jsonl, read_moses, read_tsv
from .decoding import translate
from .scoring import TranslationScores, evaluate_translation, score_translations
from .templates import TEMPLATES, build_prompt
from .trainer import LanderTrainer

__all__ = [
    "TEMPLATES",
    "CleaningReport",
    "Corpus",
    "LanderTrainer",
    "TranslationCollator",
    "TranslationExample",
    "TranslationScores",
    "build_prompt",
    "clean",
    "evaluate_translation",
    "read_corpus",
    "read_dataset",
    "read_jsonl",
    "read_moses",
    "read_tsv",
    "score_translations",
    "translate",
]
