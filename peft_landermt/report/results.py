"""The result of a run: what a base and an adapted model score on the same sentences."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ..translation import compare_translations

_FIRST = ("before", "base")
"""What the name of a file says whose scores others are compared with."""


@dataclass(frozen=True)
class Result:
    """BLEU of one direction, before and after.

    Attributes:
        pair: The direction.
        before: BLEU of the base.
        after: BLEU of the adapted model.
        low: Lower end of the 95% interval of the difference.
        high: Its upper end.
        sentences: How many were translated.
    """

    pair: str
    before: float
    after: float
    low: float
    high: float
    sentences: int

    @property
    def difference(self) -> float:
        """How much better the adapted model is."""
        return self.after - self.before

    @property
    def is_clear(self) -> bool:
        """Whether the interval leaves zero out."""
        return self.low > 0 or self.high < 0


def find_results(scores: dict[str, dict[str, dict[str, Any]]]) -> list[Result]:
    """Compare scores of the same sentences: of files that are named for what came first, with all others.

    Args:
        scores: By file and pair, what `landermt evaluate` and `landermt quickstart` write.
    """
    found = []
    first = {name: pairs for name, pairs in scores.items() if any(word in name.rpartition("/")[2] for word in _FIRST)}
    for pairs in [pairs for name, pairs in scores.items() if name not in first]:
        for pair, after in pairs.items():
            before = next((each[pair] for each in first.values() if _is_same(each.get(pair), after)), None)
            if before is not None:
                references = after["references"]
                compared = compare_translations(after["hypotheses"], before["hypotheses"], references, pair)["bleu"]
                scored = (compared.score, compared.score + compared.difference)
                found.append(Result(pair, *scored, compared.low, compared.high, len(references)))
    return found


def _is_same(before: dict[str, Any] | None, after: dict[str, Any]) -> bool:
    """Whether two scores are of the same sentences, some at least."""
    return before is not None and bool(after.get("references")) and before.get("references") == after["references"]
