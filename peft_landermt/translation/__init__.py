"""What adapters are for: corpora, training, translating and scoring."""

from .cleaning import CleaningReport, clean
from .collator import TranslationCollator
from .corpus import Corpus
from .data_sets import read_corpus, read_dataset
from .decoding import translate
from .examples import TranslationExample
from .files import read_jsonl, read_moses, read_tsv
from .scoring import TranslationScores, evaluate_translation, metrics_for, score_translations
from .templates import TEMPLATES, build_prompt
from .tmx import read_tmx
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
    "metrics_for",
    "read_corpus",
    "read_dataset",
    "read_jsonl",
    "read_moses",
    "read_tmx",
    "read_tsv",
    "score_translations",
    "translate",
]
