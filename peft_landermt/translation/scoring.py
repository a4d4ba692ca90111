"""BLEU and chrF++ of translations, by sacreBLEU."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch.distributed as dist
from sacrebleu.metrics import BLEU, CHRF
from torch import nn

from ..errors import CorpusError
from ..language_pair import parse_pair, two_letter_code
from ..processes import check_started, shared
from .decoding import Translations, translate_counted


@dataclass(frozen=True)
class TranslationScores:
    """Scores of one direction.

    Attributes:
        language_pair: The direction.
        bleu: Corpus BLEU, 0 to 100, with sacreBLEU's tokenizer for the target language.
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


def score_translations(
    hypotheses: Sequence[str], references: Sequence[str], language_pair: str, num_runaway: int = 0
) -> TranslationScores:
    """Score translations against one reference each.

    Raises:
        CorpusError: Numbers of hypotheses and references differ, or are 0.
    """
    pair = parse_pair(language_pair)
    if len(hypotheses) != len(references) or not references:
        raise CorpusError(
            "references", len(references), f"need one reference for each of the {len(hypotheses)} translations."
        )
    bleu = BLEU(trg_lang=two_letter_code(pair.target))
    chrf = CHRF(word_order=2)
    bleu_score = bleu.corpus_score(list(hypotheses), [list(references)])
    chrf_score = chrf.corpus_score(list(hypotheses), [list(references)])
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
        options: Other arguments of `translate`: `batch_size`, `max_new_tokens`, `progress`, `num_beams`, ...

    Raises:
        CorpusError: Numbers of sources and references differ, or are 0; checked before anything is translated.
        LanguagePairError: The pair is malformed, or not in the adapter.
    """
    if len(sources) != len(references) or not sources:
        raise CorpusError("references", len(references), f"need one reference for each of the {len(sources)} sources.")

    def translate_some(part: Sequence[str]) -> Translations:
        return translate_counted(model, tokenizer, part, language_pair, **options)

    translations = _translate_together(translate_some, sources) if distributed else translate_some(sources)
    return score_translations(translations.texts, references, language_pair, translations.num_runaway)


def _translate_together(
    translate_some: Callable[[Sequence[str]], Translations], sources: Sequence[str]
) -> Translations:
    """Every process translates its share, and all get all translations."""
    check_started(CorpusError)
    size = dist.get_world_size()
    shares = [sources[place::size] for place in range(size)]
    parts = list(shared(shares, translate_some, distributed=True))
    texts = [""] * len(sources)
    for place, part in enumerate(parts):
        texts[place::size] = part.texts
    return Translations(texts, sum(part.num_runaway for part in parts))
