"""Sizes of an adapter at one FFN: known from its config before any weight is loaded."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from ..choices import CarMode, InactiveNeurons, Projections, Role, Tune
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
        on_general: For languages that were added later, how many general neurons their blocks are on too.
        untuned: Blocks that only say which neurons are whose: they came with an added pair, and have no deltas.
    """

    layer: int
    neurons: int
    width: int
    general: int
    specific: dict[str, int]
    language_pairs: list[str]
    on_general: dict[str, int] = {}
    untuned: list[str] = []

    def to_dict(self) -> dict[str, Any]:
        """Return the fields, without those that only an adapter that has grown needs, where they say nothing."""
        values = self._asdict()
        return {name: value for name, value in values.items() if value or name not in _GROWN}

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


_GROWN = ("on_general", "untuned")


def check_counts(
    neuron_counts: Mapping[str, Any], language_pairs: list[str] | None, added: Collection[str] = ()
) -> None:
    """Check the sizes of an adapter's blocks.

    Args:
        neuron_counts: For every FFN what [`Counts`] holds.
        language_pairs: The pairs of the adapter.
        added: Languages that were added later; their neurons may be general too.

    Raises:
        ConfigError: A field is missing, unknown or wrong, or there are more neurons than the FFN has.
        LanguagePairError: A language or pair is malformed.
    """
    if not neuron_counts:
        raise ConfigError("neuron_counts", neuron_counts, "names no FFN; save the adapter anew.")
    for module, counts in neuron_counts.items():
        field = f"neuron_counts[{module!r}]"
        if not isinstance(counts, dict) or counts.keys() | set(_GROWN) != set(Counts._fields):
            wanted = ", ".join(Counts._fields)
            raise ConfigError(field, counts, f"must have the fields {wanted}; save the adapter anew.")
        for name in ("layer", "neurons", "width", "general"):
            _check_count(f"{field}[{name!r}]", counts[name])
        specific, pairs = counts["specific"], counts["language_pairs"]
        on_general, untuned = counts.get("on_general", {}), counts.get("untuned", [])
        for name, value in (("specific", specific), ("on_general", on_general)):
            if not isinstance(value, dict):
                raise ConfigError(f"{field}[{name!r}]", value, "must be a count by language; save the adapter anew.")
        for language, count in on_general.items():
            _check_count(f"{field}['on_general'][{language!r}]", count, smallest=1)
        for language, count in specific.items():
            check_language(language, f"{field}['specific']")
            _check_count(f"{field}['specific'][{language!r}]", count, smallest=0 if language in on_general else 1)
        first = counts["general"] + sum(count for language, count in specific.items() if language not in added)
        if max([first, *(count + on_general.get(each, 0) for each, count in specific.items())]) > counts["neurons"]:
            raise ConfigError(field, counts, "holds more neurons than the FFN has; save the adapter anew.")
        if set(on_general) - set(specific) or set(on_general) - set(added):
            raise ConfigError(f"{field}['on_general']", on_general, "must name languages that were added.")
        if not isinstance(untuned, list) or not all(block in (GENERAL, *specific) for block in untuned):
            raise ConfigError(f"{field}['untuned']", untuned, "must name blocks of the FFN; save the adapter anew.")
        if not isinstance(pairs, list):
            raise ConfigError(f"{field}['language_pairs']", pairs, "must be a list of pairs; save the adapter anew.")
        here = parse_pairs(pairs, f"{field}['language_pairs']")
        strangers = {str(pair) for pair in here} - set(language_pairs or ())
        if strangers or not set(specific) <= {language for pair in here for language in pair}:
            raise ConfigError(field, counts, f"does not fit language_pairs={language_pairs}; save the adapter anew.")


def _check_count(name: str, value: Any, smallest: int = 0) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < smallest:
        raise ConfigError(name, value, "is no such count; save the adapter anew.")


class Form(NamedTuple):
    """Form of the deltas of a block of neurons.

    Attributes:
        rank: Of the deltas; None for whole rows.
        projections: Which projections of a neuron have them.
        replaces_general: Whether, for its pairs, the block stands in the place of as many components of the general
            one, which its own began as copies of.
    """

    rank: int | None
    projections: Projections
    replaces_general: bool = False


@dataclass(frozen=True)
class BlockLayout:
    """Sizes and options of an adapter at one FFN, and at the attention beside it.

    Attributes:
        neurons: p, number of neurons of the FFN.
        width: d, the model width.
        general: Number of language-general neurons.
        specific: Number of specific neurons of every language of the pairs.
        language_pairs: Pairs for which this FFN is relevant; empty where the adapter knows no pairs.
        partitioned: Whether a neuron map tells general from specific neurons; without one all are general.
        on_general: For languages that were added later, how many general neurons their blocks are on too.
        untuned: Blocks without deltas.
        added: Languages that were added later, and the form of their blocks.
        own_gates: Pairs that were added or composed; their learned gates are tensors of their own.
        trained: Blocks that are trained, and pairs whose gates are; None for all but composed pairs'.
        attention: Roles and rank of the low-rank factors in attention, by block.
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
    on_general: Mapping[str, int] = field(default_factory=dict)
    untuned: tuple[str, ...] = ()
    added: Mapping[str, Form] = field(default_factory=dict)
    own_gates: tuple[str, ...] = ()
    trained: tuple[str, ...] | None = None
    attention: Mapping[str, tuple[tuple[Role, ...], int]] = field(default_factory=dict)

    @property
    def tuned_blocks(self) -> tuple[str, ...]:
        """Blocks that have deltas: `general` and languages."""
        general = (GENERAL,) if self.general and self.tune != "specific" else ()
        languages = [each for each in self.specific if each in self.added or self.tune in ("pair", "specific")]
        return tuple(block for block in (*general, *languages) if block not in self.untuned)

    @property
    def drops_neurons(self) -> bool:
        """Whether specific neurons of languages outside the pair take no part."""
        return self.partitioned and self.inactive_neurons == "drop"

    def rank(self, block: str) -> int | None:
        """Return the rank of a block's deltas; None for whole rows."""
        return self.form(block).rank

    def form(self, block: str) -> Form:
        """Return the form of a block's deltas."""
        first = Form(self.general_rank if block == GENERAL else self.specific_rank, self.projections)
        return self.added.get(block, first)

    def is_trained(self, name: str) -> bool:
        """Tell whether a block, or the gates of a pair, are trained, or stay as they were when others were added."""
        return name not in self.own_gates if self.trained is None else name in self.trained

    def languages(self, pair: str | None) -> tuple[str, ...]:
        """Return the languages of `pair` that have blocks here."""
        parts = pair.split("-") if pair is not None else ()
        return tuple(language for language in self.specific if language in parts)

    def weights(self, block: str, languages: Collection[str], ranks: Mapping[str, int | None]) -> tuple[int, ...]:
        """Weigh a block for a pair: what ΔW has of it.

        A component of the general block has 1, less one for each block that stands in its place. Such a block began as
        a copy, and what it adds is what it has become, less what it was. So where two stand in a component's place, in
        a pair that was composed, the component is subtracted once.

        Args:
            block: The block.
            languages: Of the pair, those that have a block beside it.
            ranks: Of all these blocks.

        Returns:
            A weight for each component of the general block, where it is of low rank; of another block a single one.
        """
        rank = ranks[block]
        if block != GENERAL or rank is None:
            return (int(block == GENERAL or block in languages),)
        replaced = [ranks[language] or 0 for language in languages if self.form(language).replaces_general]
        return tuple(1 - sum(component < number for number in replaced) for component in range(rank))
