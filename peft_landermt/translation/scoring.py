"""BLEU and chrF++ of translations, by sacreBLEU."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch.distributed as dist
from sacrebleu.metrics import BLEU, CHRF
from torch import nn

from ..errors import ConfigError, CorpusError
from ..language_pair import parse_language, parse_pair
from ..processes import check_started, shared
from .composing import compose
from .decoding import Translations, translate_counted

_OF_LANGUAGES = {"ja": ("Jpan", "ja-mecab"), "ko": ("Kore", "ko-mecab")}
"""sacreBLEU's tokenizers of single languages, each for one script."""
_WITHOUT_SPACES = (
    *("Thai", "Laoo", "Khmr", "Mymr", "Tale", "Talu", "Lana", "Tavt", "Ahom"),  # class SA of line breaking (UAX #14)
    *("Tibt", "Java", "Bali", "Batk", "Bugi", "Yiii", "Bopo", "Hira", "Kana", "Hrkt", "Jpan"),
)
_OF_SCRIPTS = {**dict.fromkeys(_WITHOUT_SPACES, "char"), **dict.fromkeys(("Hans", "Hant", "Hani", "Hanb"), "zh")}
_EXTRAS = {"ja-mecab": "ja", "ko-mecab": "ko"}


class Metrics(NamedTuple):
    """sacreBLEU's metrics for one direction."""

    bleu: BLEU
    chrf: CHRF


@dataclass(frozen=True)
class TranslationScores:
    """Scores of one direction.

    Attributes:
        language_pair: The direction.
        bleu: Corpus BLEU, 0 to 100, with the tokenizer for the target language; see `bleu_tokenizer_for`.
        chrf: Corpus chrF++ (word order 2), 0 to 100.
        bleu_signature: sacreBLEU's signature of the BLEU score.
        chrf_signature: sacreBLEU's signature of the chrF++ score.
        hypotheses: The translations, in order.
        num_empty: How many are empty.
        num_runaway: How many reached the limit of new tokens without an end.
    """

    language_pair: str
    bleu: float
    chrf: float
    bleu_signature: str
    chrf_signature: str
    hypotheses: list[str]
    num_empty: int
    num_runaway: int


def bleu_tokenizer_for(language: str) -> str:
    """Return sacreBLEU's tokenizer for a language, by the script that its code asks for, or its usual one.

    `zh` for Chinese characters of any language; `ja-mecab` and `ko-mecab` for Japanese and Korean; `char`, n-grams of
    characters, for other scripts that are written without spaces between words (Thai, Lao, Khmer, Burmese, Tibetan,
    ...); else `13a`.

    Raises:
        LanguagePairError: The code is malformed or unknown.
    """
    tag = parse_language(language)
    script, tokenizer = _OF_LANGUAGES.get(tag.language.code, (None, None))
    if tokenizer is not None and script == tag.written_in:
        return tokenizer
    return _OF_SCRIPTS.get(tag.written_in, "13a")


def metrics_for(language_pair: str, bleu_tokenizer: str | None = None) -> Metrics:
    """Make BLEU and chrF++ for a direction; made before anything is translated, so that what is missing is told then.

    Args:
        language_pair: Direction such as `"en-de"`.
        bleu_tokenizer: One of sacreBLEU's tokenizers; by default that of `bleu_tokenizer_for` the target language.

    Raises:
        LanguagePairError: The pair is malformed.
        ConfigError: sacreBLEU has no such tokenizer, or lacks a package or file for it.
    """
    tokenizer = bleu_tokenizer or bleu_tokenizer_for(parse_pair(language_pair).target)
    if tokenizer not in BLEU.TOKENIZERS:
        raise ConfigError("bleu_tokenizer", tokenizer, f"must be one of {', '.join(BLEU.TOKENIZERS)}.")
    try:
        return Metrics(BLEU(tokenize=tokenizer), CHRF(word_order=2))
    except (ImportError, RuntimeError, OSError, AssertionError) as error:  # how sacreBLEU's tokenizers fail
        extra = _EXTRAS.get(tokenizer)
        install = f"run pip install 'peft_landermt[{extra}]', or " if extra else ""
        raise ConfigError(
            "bleu_tokenizer",
            tokenizer,
            f"BLEU of {language_pair} cannot be made ({' '.join(str(error).split())}); {install}score characters with "
            "bleu_tokenizer='char'.",
        ) from error


def score_translations(
    hypotheses: Sequence[str],
    references: Sequence[str],
    language_pair: str,
    num_runaway: int = 0,
    bleu_tokenizer: str | None = None,
) -> TranslationScores:
    """Score translations against one reference each.

    Both are compared in Unicode's composed form (NFC), as `clean` gives it.

    Args:
        hypotheses: Translations.
        references: One reference per translation.
        language_pair: Direction such as `"en-de"`.
        num_runaway: How many translations found no end; handed on.
        bleu_tokenizer: See `metrics_for`.

    Raises:
        CorpusError: Numbers of hypotheses and references differ, or are 0.
        ConfigError: The tokenizer of BLEU cannot be had.
    """
    pair = parse_pair(language_pair)
    if len(hypotheses) != len(references) or not references:
        raise CorpusError(
            "references", len(references), f"need one reference for each of the {len(hypotheses)} translations."
        )
    bleu, chrf = metrics_for(language_pair, bleu_tokenizer)
    translated, wanted = ([compose(text) for text in texts] for texts in (hypotheses, references))
    bleu_score, chrf_score = (metric.corpus_score(translated, [wanted]) for metric in (bleu, chrf))
    return TranslationScores(
        language_pair=str(pair),
        bleu=bleu_score.score,
        chrf=chrf_score.score,
        bleu_signature=str(bleu.get_signature()),
        chrf_signature=str(chrf.get_signature()),
        hypotheses=list(hypotheses),
        num_empty=sum(not hypothesis.strip() for hypothesis in hypotheses),
        num_runaway=num_runaway,
    )


def evaluate_translation(
    model: nn.Module,
    tokenizer: Any,
    sources: Sequence[str],
    references: Sequence[str],
    language_pair: str,
    distributed: bool = False,
    bleu_tokenizer: str | None = None,
    **options: Any,
) -> TranslationScores:
    """Translate `sources` and score the result against `references`.

    Args:
        model: See `translate`.
        tokenizer: Its tokenizer.
        sources: Source sentences.
        references: One reference per source.
        language_pair: Direction such as `"en-de"`.
        distributed: Whether the processes of torch.distributed share the sources; all get the same scores. Not for
            models whose weights are split between the processes.
        bleu_tokenizer: See `metrics_for`.
        options: Other arguments of `translate`: `batch_size`, `max_new_tokens`, `progress`, `num_beams`, ...

    Raises:
        CorpusError: Numbers of sources and references differ, or are 0; checked before anything is translated.
        LanguagePairError: The pair is malformed, or not in the adapter.
        ConfigError: The tokenizer of BLEU cannot be had; checked before anything is translated, too.
    """
    metrics_for(language_pair, bleu_tokenizer)
    if len(sources) != len(references) or not sources:
        raise CorpusError("references", len(references), f"need one reference for each of the {len(sources)} sources.")

    def translate_some(part: Sequence[str]) -> Translations:
        return translate_counted(model, tokenizer, part, language_pair, **options)

    translations = _translate_together(translate_some, sources) if distributed else translate_some(sources)
    return score_translations(translations.texts, references, language_pair, translations.num_runaway, bleu_tokenizer)


def _translate_together(
    translate_some: Callable[[Sequence[str]], Translations], sources: Sequence[str]
) -> Translations:
    """Translate in every process its share, and give all of them all translations."""
    check_started(CorpusError)
    size = dist.get_world_size()
    shares = [sources[place::size] for place in range(size)]
    parts = list(shared(shares, translate_some, distributed=True))
    texts = [""] * len(sources)
    for place, part in enumerate(parts):
        texts[place::size] = part.texts
    return Translations(texts, sum(part.num_runaway for part in parts))
