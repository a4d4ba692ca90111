"""Rules that remove sentence pairs that would teach a model nothing, or something wrong."""

from __future__ import annotations

import hashlib
import itertools
import unicodedata
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from ..errors import CorpusError
from ..language_pair import LanguagePair, parse_language, parse_pair
from .composing import MAX_DECOMPOSED, has_too_many_marks
from .corpus import Corpus
from .examples import TranslationExample, remove, store
from .identification import may_be

RULES: tuple[str, ...] = ("empty", "too_long", "length_ratio", "copy", "duplicate")
"""Names of the rules, in the order in which they are applied; `language`, where it is asked for, before the last."""

_CHARACTER_WEIGHTS = {"Hans": 3, "Hant": 3, "Hani": 3, "Hanb": 3, "Jpan": 3, "Kore": 2}
"""About how many characters of an alphabetic script one character of text in these scripts is worth."""

_RATIO_MIN_CHARACTERS = 20
"""Short sentences differ in length by chance: "Yes." is "Oui, c'est ça."."""


@dataclass(frozen=True)
class CleaningReport:
    """What [`clean`] kept and removed.

    Attributes:
        kept: Number of examples kept.
        removed: Number of examples removed by each rule, in order.
    """

    kept: int
    removed: dict[str, int]

    def __str__(self) -> str:
        total = self.kept + sum(self.removed.values())
        return f"kept {self.kept} of {total} sentence pairs; removed: {_describe(self.removed)}"


def clean(
    corpus: Corpus, *, max_characters: int = 1000, max_length_ratio: float = 4.0, check_languages: bool = False
) -> tuple[Corpus, CleaningReport]:
    """Normalise the text of a corpus and leave out the examples that break a rule.

    Text is brought to Unicode's composed form (NFC), and every run of whitespace, no-break spaces and line separators
    included, becomes one space, with none at the ends. The rules see, and the result holds, the normalised text.
    An example counts under the first rule that it breaks:

    - `empty`: a side has no text.
    - `too_long`: a side has more than `max_characters` characters, or more than 30 combining marks in a row.
    - `length_ratio`: one side is more than `max_length_ratio` times as long as the other. Lengths are in characters,
      times 3 for text in Chinese or Japanese script and times 2 in Korean script, whose characters say more, by
      whatever code a language is named. Only applied where the longer side, measured so, is longer than 20.
    - `copy`: source and target are the same but for case.
    - `language`: with `check_languages`, a side is in another language than it should be. Only applied to text of more
      than 20 characters, in languages that py3langid knows.
    - `duplicate`: an earlier example of the same language pair has the same source and target.

    Args:
        corpus: What to clean; left as it is.
        max_characters: Most characters (Unicode code points) a sentence may have.
        max_length_ratio: Highest ratio of the lengths of a pair, at least 1.
        check_languages: Whether to identify languages; needs the extra `langid`.

    Returns:
        The cleaned corpus, with the order and the `skipped` counts of `corpus`, and what was removed.

    Raises:
        CorpusError: A limit is out of range, no example is left, languages cannot be identified, or what is kept
            cannot be written to disk.
        LanguagePairError: An example has a malformed language pair.
    """
    if max_characters < 1:
        raise CorpusError("max_characters", max_characters, "must be at least 1.")
    if not max_length_ratio >= 1:  # so written, it refuses NaN
        raise CorpusError("max_length_ratio", max_length_ratio, "must be at least 1.")
    removed = dict.fromkeys([*RULES[:-1], *(["language"] if check_languages else []), RULES[-1]], 0)
    digests = bytearray()

    def passing() -> Iterator[TranslationExample]:
        for raw in corpus:
            example = _normalised(raw, max_characters)
            if example is None:
                removed["too_long"] += 1
            elif rule := _broken_rule(example, max_characters, max_length_ratio, check_languages):
                removed[rule] += 1
            else:
                digests.extend(_digest(example))
                yield example

    kept = store(passing())
    first = _first_of_equals(digests)
    removed["duplicate"] = len(first) - int(first.sum())
    if removed["duplicate"]:
        repeated, kept = kept, store(itertools.compress(kept, first))
        remove(getattr(repeated, "path", None))
    if not kept:
        remedy = f"cleaning leaves none of them ({_describe(removed)}); check the corpus and the limits."
        raise CorpusError("corpus", f"{len(corpus)} sentence pairs", remedy)
    return Corpus(kept, Counter(corpus.skipped)), CleaningReport(len(kept), removed)


def _normalised(raw: TranslationExample, max_characters: int) -> TranslationExample | None:
    """Return the example in normal form; None if it is too long, told before that work."""
    source, target = (" ".join(text.split()) for text in (raw.source, raw.target))
    if not source or not target:
        return TranslationExample(source, target, raw.language_pair)
    if max(len(source), len(target)) > MAX_DECOMPOSED * max_characters:
        return None
    if has_too_many_marks(source) or has_too_many_marks(target):
        return None
    source, target = unicodedata.normalize("NFC", source), unicodedata.normalize("NFC", target)
    return TranslationExample(source, target, raw.language_pair)


def _digest(example: TranslationExample) -> bytes:
    """Return 16 bytes that stand for an example: two that differ have the same about once in 10^38."""
    text = "\0".join((example.language_pair, str(len(example.source)), example.source, example.target))
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).digest()


def _first_of_equals(digests: bytearray) -> np.ndarray:
    """Tell, for each digest of 16 bytes, whether no earlier one is equal; bool, (N,)."""
    numbers = np.frombuffer(digests, dtype="<u8").reshape(-1, 2)
    order = np.lexsort(numbers.T)  # stable, so that the first of equals stays in front
    ordered = numbers[order]
    first = np.ones(len(numbers), dtype=bool)
    first[order[1:]] = (ordered[1:] != ordered[:-1]).any(axis=1)
    return first


def _broken_rule(
    example: TranslationExample, max_characters: int, max_length_ratio: float, check_languages: bool
) -> str | None:
    """Return the first broken rule, of those that look at one example alone."""
    source, target = example.source, example.target
    if not source or not target:
        return "empty"
    if max(len(source), len(target)) > max_characters:
        return "too_long"
    pair, weights = _weighed(example.language_pair)
    shorter, longer = sorted((len(source) * weights[0], len(target) * weights[1]))
    if longer > _RATIO_MIN_CHARACTERS and longer > max_length_ratio * shorter:
        return "length_ratio"
    if source.casefold() == target.casefold():
        return "copy"
    if check_languages and not (may_be(source, pair.source) and may_be(target, pair.target)):
        return "language"
    return None


@lru_cache(4096)
def _weighed(language_pair: str) -> tuple[LanguagePair, tuple[int, int]]:
    """Return a pair, and what a character of its source and of its target counts."""
    pair = parse_pair(language_pair)
    source, target = (_CHARACTER_WEIGHTS.get(parse_language(language).written_in, 1) for language in pair)
    return pair, (source, target)


def _describe(removed: dict[str, int]) -> str:
    return ", ".join(f"{rule} {count}" for rule, count in removed.items())
