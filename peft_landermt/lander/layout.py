"""Sizes of an adapter at one FFN: known from its config before any weight is loaded."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from ..choices import CarMode, InactiveNeurons, Projections, Tune
from ..errors import ConfigError
from ..language_pair import LanguagePair, check_language, languages_of, parse_pairs
from ..neuron_map import NeuronMap

CONSTANT = ("paper", "proportional")
"""Values of `car` whose gates are numbers."""

INPUT_DEPENDENT = ("token", "learned")
"""Values of `car` whose gates depend on the input."""

GENERAL = "general"
"""Name of the block of the language-general neurons; other blocks have the name of their language."""


class Counts(NamedTuple):
    """How many neurons an adapter has in its blocks at one FFN; what `LanderConfig.neuron_counts` says of it.

    Attributes:
        layer: Index of the FFN in the neuron map.
        neurons: p.
        width: d.
        general: Number of language-general neurons.
        specific: Number of specific neurons of every language that has some.
        language_pairs: Pairs for which the FFN is relevant.
    """

    layer: int
    neurons: int
    width: int
    general: int
    specific: dict[str, int]
    language_pairs: list[str]

    @classmethod
    def of_map(cls, neuron_map: NeuronMap, layer: int, pairs: Iterable[LanguagePair], tune: Tune) -> Counts:
        """Count the neurons of a layer that is relevant to `pairs`."""
        neurons = int(neuron_map.neurons[layer].owner.shape[0])
        named = [str(pair) for pair in pairs]
        if tune == "layers":
            return cls(layer, neurons, neuron_map.width, neurons, {}, named)
        specific = {language: len(neuron_map.specific(layer, language)) for language in languages_of(pairs)}
        specific = {language: count for language, count in specific.items() if count}
        return cls(layer, neurons, neuron_map.width, len(neuron_map.general(layer)), specific, named)


def check_counts(neuron_counts: Mapping[str, Any], language_pairs: list[str] | None) -> None:
    """Check the sizes of an adapter's blocks.

    Args:
        neuron_counts: For every FFN what [`Counts`] holds.
        language_pairs: The pairs of the adapter.

    Raises:
        ConfigError: A field is missing, unknown or wrong, or there are more neurons than the FFN has.
        LanguagePairError: A language or pair is malformed.
    """
    if not neuron_counts:
        raise ConfigError("neuron_counts", neuron_counts, "names no FFN; save the adapter anew.")
    for module, counts in neuron_counts.items():
        field = f"neuron_counts[{module!r}]"
        if not isinstance(counts, dict) or counts.keys() != set(Counts._fields):
            wanted = ", ".join(Counts._fields)
            raise ConfigError(field, counts, f"must have the fields {wanted}; save the adapter anew.")
        for name in ("layer", "neurons", "width", "general"):
            _check_count(f"{field}[{name!r}]", counts[name])
        specific, pairs = counts["specific"], counts["language_pairs"]
        if not isinstance(specific, dict):
            raise ConfigError(f"{field}['specific']", specific, "must be a count by language; save the adapter anew.")
        for language, count in specific.items():
            check_language(language, f"{field}['specific']")
            _check_count(f"{field}['specific'][{language!r}]", count, smallest=1)
        if counts["general"] + sum(specific.values()) > counts["neurons"]:
            raise ConfigError(field, counts, "holds more neurons than the FFN has; save the adapter anew.")
        if not isinstance(pairs, list):
            raise ConfigError(f"{field}['language_pairs']", pairs, "must be a list of pairs; save the adapter anew.")
        here = parse_pairs(pairs, f"{field}['language_pairs']")
        strangers = {str(pair) for pair in here} - set(language_pairs or ())
        if strangers or not set(specific) <= {language for pair in here for language in pair}:
            raise ConfigError(field, counts, f"does not fit language_pairs={language_pairs}; save the adapter anew.")


def _check_count(name: str, value: Any, smallest: int = 0) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < smallest:
        raise ConfigError(name, value, "is no such count; save the adapter anew.")


@dataclass(frozen=True)
class BlockLayout:
    """Sizes and options of an adapter at one FFN.

    Attributes:
        neurons: p, number of neurons of the FFN.
        width: d, the model width.
        general: Number of language-general neurons.
        specific: Number of specific neurons of every language of the pairs.
        language_pairs: Pairs for which this FFN is relevant; empty where the adapter knows no pairs.
        partitioned: Whether a neuron map tells general from specific neurons; without one all are general.
    """

    neurons: int
    width: int
    general: int
    specific: Mapping[str, int] = field(default_factory=dict)
    language_pairs: tuple[str, ...] = ()
    partitioned: bool = False
    car: CarMode = "off"
    inactive_neurons: InactiveNeurons = "keep"
    tune: Tune = "pair"
    projections: Projections = "all"
    general_rank: int | None = None
    specific_rank: int | None = None

    @property
    def tuned_blocks(self) -> tuple[str, ...]:
        """Blocks that have deltas: `general` and languages."""
        general = (GENERAL,) if self.general and self.tune != "specific" else ()
        return general + (tuple(self.specific) if self.tune in ("pair", "specific") else ())

    @property
    def drops_neurons(self) -> bool:
        """Whether specific neurons of languages outside the pair take no part."""
        return self.partitioned and self.inactive_neurons == "drop"

    def rank(self, block: str) -> int | None:
        """Return the rank of a block's deltas; None for whole rows."""
        return self.general_rank if block == GENERAL else self.specific_rank

    def concerns(self, pair: str | None) -> bool:
        """Tell whether this FFN is adapted for a pair."""
        return not self.language_pairs or pair is None or pair in self.language_pairs

    def languages(self, pair: str | None) -> tuple[str, ...]:
        """Return the languages of `pair` that have specific neurons here."""
        parts = pair.split("-") if pair is not None else ()
        return tuple(language for language in self.specific if language in parts)
