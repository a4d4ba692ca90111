"""Scores as a table in Markdown."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


class ScoreTable:
    """A table in Markdown on standard output, row by row, with the mean of all pairs at its end.

    Args:
        compared: Whether the scores are compared with a baseline.
    """

    def __init__(self, compared: bool) -> None:
        self.columns = ["BLEU", "chrF++", "empty", "runaway"]
        if compared:
            self.columns += ["BLEU − baseline", "95%", "p", "chrF++ − baseline", "95%", "p"]
        self.scores: list[dict[str, Any]] = []
        self._print("pair", self.columns)
        self._print("---", ["---:"] * len(self.columns))

    def add(self, pair: str, score: dict[str, Any]) -> None:
        """Print the row of a direction."""
        self.scores.append(score)
        cells = [f"{score['bleu']:.2f}", f"{score['chrf']:.2f}", str(score["num_empty"]), str(score["num_runaway"])]
        self._print(pair, cells + self._compared(score.get("baseline", {})))

    def end(self, compared: Mapping[str, Any]) -> None:
        """Print the mean, and behind the table what was scored how.

        Args:
            compared: By metric, how the mean over directions differs from the baseline's.
        """
        if len(self.scores) > 1:
            cells = [
                f"{sum(score[name] for score in self.scores) / len(self.scores):.2f}" for name in ("bleu", "chrf")
            ]
            cells += [str(sum(score[name] for score in self.scores)) for name in ("num_empty", "num_runaway")]
            self._print("mean", cells + self._compared(compared))
        print()
        for name, key in (("BLEU", "bleu_signature"), ("chrF++", "chrf_signature")):
            for signature in dict.fromkeys(score[key] for score in self.scores):
                pairs = ", ".join(score["language_pair"] for score in self.scores if score[key] == signature)
                print(f"{name}, {pairs}: {signature}")
        if "baseline" in self.scores[0]:
            print("95% and p: paired bootstrap, 1000 resamples")

    @staticmethod
    def _compared(found: Mapping[str, Any]) -> list[str]:
        cells = []
        for each in found.values():
            interval = f"{each['low']:+.2f} to {each['high']:+.2f}"
            cells += [f"{each['difference']:+.2f}", interval, f"{each['p_value']:.3f}"]
        return cells

    @staticmethod
    def _print(first: str, cells: list[str]) -> None:
        print(f"| {' | '.join([first, *cells])} |", flush=True)
