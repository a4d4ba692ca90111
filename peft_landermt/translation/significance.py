"""Whether one system translates better than another: the paired bootstrap of Koehn (2004)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from ..errors import CorpusError
from .composing import compose
from .scoring import metrics_for

_SEED = 12345
"""That of sacreBLEU's own test."""


class Difference(NamedTuple):
    """How far a score is above another one on the same sentences.

    Attributes:
        score: The other system's score.
        difference: Of the scores; positive where this system is better.
        low: Lower end of the interval that holds 95% of the differences of resampled test sets.
        high: Its upper end.
        p_value: How likely a difference as large is where neither is better, as sacreBLEU's paired bootstrap tells it.
    """

    score: float
    difference: float
    low: float
    high: float
    p_value: float


def compare_translations(
    hypotheses: Sequence[str],
    baseline: Sequence[str],
    references: Sequence[str],
    language_pair: str,
    bleu_tokenizer: str | None = None,
    num_samples: int = 1000,
) -> dict[str, Difference]:
    """Compare two systems' translations of the same sentences, by resampling sentences.

    Args:
        hypotheses: Translations of the system.
        baseline: Those of the one that it is compared with.
        references: One reference for each.
        language_pair: Direction such as `"en-de"`.
        bleu_tokenizer: See `metrics_for`.
        num_samples: Resampled test sets.

    Returns:
        By `"bleu"` and `"chrf"`.

    Raises:
        CorpusError: Numbers of sentences differ, or are 0.
        ConfigError: The tokenizer of BLEU cannot be had.
    """
    found = _resample(hypotheses, baseline, references, language_pair, bleu_tokenizer, num_samples)
    return {name: _difference(scores) for name, scores in found.items()}


def compare_over_pairs(
    hypotheses: Mapping[str, Sequence[str]],
    baseline: Mapping[str, Sequence[str]],
    references: Mapping[str, Sequence[str]],
    bleu_tokenizer: str | None = None,
    num_samples: int = 1000,
) -> dict[str, Difference]:
    """Compare the mean scores of two systems over several directions, by resampling sentences.

    Directions with equally many sentences are resampled at the same places: those of a test set in many languages,
    such as FLORES-200, are one sentence each, and hard or easy together.

    Args:
        hypotheses: Translations of the system, by direction such as `"en-de"`.
        baseline: Those of the one that it is compared with, of the same directions.
        references: One reference for each.
        bleu_tokenizer: See `metrics_for`.
        num_samples: Resampled test sets.

    Returns:
        By `"bleu"` and `"chrf"`, of means over the directions.

    Raises:
        CorpusError: Directions or numbers of sentences differ, or there are none.
        ConfigError: The tokenizer of BLEU cannot be had.
    """
    if not hypotheses.keys() == baseline.keys() == references.keys() or not references:
        pairs = "; ".join(", ".join(texts) or "none" for texts in (hypotheses, baseline, references))
        problem = f"must have the same directions as the system and the references; here are {pairs}."
        raise CorpusError("baseline", list(baseline), problem)
    by_pair = [
        _resample(hypotheses[pair], baseline[pair], references[pair], pair, bleu_tokenizer, num_samples)
        for pair in references
    ]
    return {name: _difference(np.mean([found[name] for found in by_pair], axis=0)) for name in by_pair[0]}


def _resample(
    hypotheses: Sequence[str],
    baseline: Sequence[str],
    references: Sequence[str],
    language_pair: str,
    bleu_tokenizer: str | None,
    num_samples: int,
) -> dict[str, np.ndarray]:
    """Score two systems by every metric: (2, 1 + samples), first on the sentences as they are."""
    if not len(hypotheses) == len(baseline) == len(references) or not references:
        numbers = f"{len(hypotheses)}, {len(baseline)} and {len(references)}"
        raise CorpusError("baseline", len(baseline), f"translations, those of the baseline and references: {numbers}.")
    places = np.random.default_rng(_SEED).choice(len(references), (num_samples, len(references)))
    wanted = [[compose(text) for text in references]]
    found = {}
    for name, metric in metrics_for(language_pair, bleu_tokenizer)._asdict().items():
        scores = []
        for texts in (hypotheses, baseline):
            # as sacrebleu.significance does, which tells p but no interval of the difference
            counts = np.array(metric._extract_corpus_statistics([compose(text) for text in texts], wanted))
            resampled = (metric._compute_score_from_stats(counts[chosen].sum(axis=0)).score for chosen in places)
            scores.append([metric._aggregate_and_compute(counts).score, *resampled])
        found[name] = np.array(scores)
    return found


def _difference(scores: np.ndarray) -> Difference:
    """Tell by how much the first system is better, from the scores of both (2, 1 + samples)."""
    difference, *_ = differences = scores[0] - scores[1]
    sizes = np.abs(differences[1:])
    extreme = sizes - sizes.mean() >= abs(difference)  # sacreBLEU's >, which finds a system better than itself
    low, high = np.percentile(differences[1:], (2.5, 97.5))
    p_value = (int(extreme.sum()) + 1) / (len(sizes) + 1)
    return Difference(float(scores[1, 0]), float(difference), float(low), float(high), p_value)
