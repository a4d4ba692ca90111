"""Whether one system translates better than another: the paired bootstrap of Koehn (2004)."""

from __future__ import annotations

from collections.abc import Sequence
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
    if not len(hypotheses) == len(baseline) == len(references) or not references:
        numbers = f"{len(hypotheses)}, {len(baseline)} and {len(references)}"
        raise CorpusError("baseline", len(baseline), f"translations, those of the baseline and references: {numbers}.")
    chosen = np.random.default_rng(_SEED).choice(len(references), (num_samples, len(references)))
    wanted = [[compose(text) for text in references]]
    found = {}
    for name, metric in metrics_for(language_pair, bleu_tokenizer)._asdict().items():
        scores, resampled = [], []
        for texts in (hypotheses, baseline):
            # as sacrebleu.significance does, which tells p but no interval of the difference
            counts = np.array(metric._extract_corpus_statistics([compose(text) for text in texts], wanted))
            scores.append(metric._aggregate_and_compute(counts).score)
            sums = (counts[places].sum(axis=0) for places in chosen)
            resampled.append(np.array([metric._compute_score_from_stats(row).score for row in sums]))
        difference, differences = scores[0] - scores[1], resampled[0] - resampled[1]
        sizes = np.abs(differences)
        extreme = sizes - sizes.mean() >= abs(difference)  # sacreBLEU's >, which finds a system better than itself
        low, high = np.percentile(differences, (2.5, 97.5))
        p_value = (int(extreme.sum()) + 1) / (num_samples + 1)
        found[name] = Difference(scores[1], difference, float(low), float(high), p_value)
    return found
