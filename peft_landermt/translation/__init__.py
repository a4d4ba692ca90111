"""What adapters are for: corpora, training, translating and scoring."""

from ..language_pair import TRANSLATION_PROMPT
from .checkpoints import FullPrecisionCheckpoints
from .cleaning import CleaningReport, clean
from .collator import TranslationCollator
from .corpus import Corpus
from .data_sets import read_corpus, read_dataset
from .decoding import Translations, translate, translate_counted
from .examples import TranslationExample
from .files import read_jsonl, read_moses, read_tsv
from .losses import TranslationLoss
from .rows import RowReport, usable_rows
from .scoring import TranslationScores, evaluate_translation, metrics_for, score_translations
from .significance import compare_over_pairs, compare_translations
from .templates import TEMPLATES, build_prompt, chat_prompt
from .tmx import read_tmx
from .trainer import LanderTrainer

__all__ = [
    "TEMPLATES",
    "TRANSLATION_PROMPT",
    "CleaningReport",
    "Corpus",
    "FullPrecisionCheckpoints",
    "LanderTrainer",
    "RowReport",
    "TranslationCollator",
    "TranslationExample",
    "TranslationLoss",
    "TranslationScores",
    "Translations",
    "build_prompt",
    "chat_prompt",
    "clean",
    "compare_over_pairs",
    "compare_translations",
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
    "translate_counted",
    "usable_rows",
]
