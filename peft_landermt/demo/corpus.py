"""A multi-way parallel corpus written for this project (CC0): English, German, French, Italian, Arabic, Chinese."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files

from ..errors import LanguagePairError
from ..language_pair import parse_pair

_PERIOD = 6
"""One row in six is held out, one in six is for calibration, and four are for training."""


@dataclass(frozen=True)
class DemoCorpus:
    """Parallel sentences by language, split by row; every topic is in every part.

    Attributes:
        calibration: Sentences for neuron detection.
        train: Sentences for training.
        test: Held-out sentences.
    """

    calibration: Mapping[str, Sequence[str]]
    train: Mapping[str, Sequence[str]]
    test: Mapping[str, Sequence[str]]

    @property
    def languages(self) -> list[str]:
        """Codes of the languages of the corpus."""
        return list(self.train)

    def training_rows(self, language_pairs: Sequence[str]) -> list[dict[str, str]]:
        """Make rows for [`LanderTrainer`]: all training sentences in every one of the pairs.

        Raises:
            LanguagePairError: If a language is not in the corpus.
        """
        rows = []
        for name in language_pairs:
            source, target = self.pair(name, "train")
            rows += [{"source": s, "target": t, "language_pair": name} for s, t in zip(source, target, strict=True)]
        return rows

    def pair(self, language_pair: str, part: str = "test") -> tuple[list[str], list[str]]:
        """Return the source and target sentences of a pair in one part.

        Raises:
            LanguagePairError: If a language is not in the corpus.
        """
        pair = parse_pair(language_pair)
        sentences: Mapping[str, Sequence[str]] = getattr(self, part)
        for language in pair:
            if language not in sentences:
                raise LanguagePairError("language_pair", language_pair, f"the corpus has {', '.join(sentences)}.")
        return list(sentences[pair.source]), list(sentences[pair.target])


def load_demo_corpus() -> DemoCorpus:
    """Read the corpus that comes with the package."""
    lines = files(__package__).joinpath("corpus.tsv").read_text(encoding="utf-8").rstrip("\n").split("\n")
    _, *languages = lines[0].split("\t")
    rows = [line.split("\t")[1:] for line in lines[1:]]

    def part(*remainders: int) -> dict[str, list[str]]:
        chosen = [row for index, row in enumerate(rows) if index % _PERIOD in remainders]
        return {language: [row[column] for row in chosen] for column, language in enumerate(languages)}

    return DemoCorpus(calibration=part(1), train=part(2, 3, 4, 5), test=part(0))
