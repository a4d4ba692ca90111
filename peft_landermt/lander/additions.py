"""What an adapter got after it was made: languages with blocks of their own, and pairs that nobody trained."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import MISSING, asdict, dataclass, fields, replace
from typing import TYPE_CHECKING, Any

from ..choices import Projections, Role
from ..errors import ConfigError
from ..language_pair import languages_of, parse_pairs
from ..routed.schema import check_fields
from .layout import GENERAL, INPUT_DEPENDENT, Form

if TYPE_CHECKING:
    from .config import LanderConfig


@dataclass(frozen=True)
class Addition:
    """Languages that were added to an adapter at one time.

    Attributes:
        languages: The languages; each has blocks of its own.
        language_pairs: Pairs that were added with them and are still in the adapter.
        rank: Rank of their blocks in FFNs; None for whole rows.
        attention_modules: Projections of attention in which each has low-rank factors; None for none.
        attention_rank: Rank of these.
        neuron_map_signature: Of the neuron map that their neurons are from.
        projections: Projections of a neuron that their blocks are on; None: those of the adapter's first blocks.
        replaces_general: Whether their blocks began as copies of components of the general one, and stand in the place
            of these for their pairs.
    """

    languages: list[str]
    language_pairs: list[str]
    rank: int | None
    attention_modules: list[Role] | None
    attention_rank: int
    neuron_map_signature: str | None
    projections: Projections | None = None
    replaces_general: bool = False

    def to_dict(self) -> dict[str, Any]:
        """Return the fields, as a config keeps them."""
        values = asdict(self)  # earlier versions did not write the fields that have a default
        return {item.name: values[item.name] for item in fields(self) if values[item.name] != item.default}


def read_additions(additions: Sequence[Mapping[str, Any]], language_pairs: Sequence[str]) -> list[Addition]:
    """Read the additions of a config.

    Args:
        additions: What `Addition.to_dict` gave, in the order in which they were made.
        language_pairs: All pairs of the adapter.

    Raises:
        ConfigError: A field is missing, unknown or wrong; a language was added twice, or no pair has it.
    """
    remedy = "save the adapter anew."
    if not additions:
        raise ConfigError("additions", additions, f"names nothing; {remedy}")
    served, found = set(languages_of(parse_pairs(language_pairs))), list[Addition]()
    for values in additions:
        optional = {item.name for item in fields(Addition) if item.default is not MISSING}
        if values.keys() | optional != {item.name for item in fields(Addition)}:
            raise ConfigError("additions", values, f"must have the fields of an addition; {remedy}")
        addition = Addition(**values)
        check_fields(addition)
        for name in ("rank", "attention_rank"):
            rank = getattr(addition, name)
            if rank is not None and rank < 1:
                raise ConfigError(name, rank, "must be a positive integer.")
        if addition.attention_modules is not None and not addition.attention_modules:
            raise ConfigError("attention_modules", addition.attention_modules, "names nothing; None means none.")
        earlier = {language for each in found for language in each.languages}
        twice = len(set(addition.languages)) < len(addition.languages) or earlier & set(addition.languages)
        if not addition.languages or twice or set(addition.languages) - served:
            raise ConfigError("additions", values, f"must name languages of the pairs, each once; {remedy}")
        if set(addition.language_pairs) - set(language_pairs):
            raise ConfigError("additions", values, f"names pairs that the adapter has not; {remedy}")
        found.append(addition)
    return found


def check_growth(config: LanderConfig) -> None:
    """Check what a config says of additions and composed pairs.

    Raises:
        ConfigError: It is wrong, or the adapter is none that can grow.
        LanguagePairError: A composed pair is malformed.
    """
    for name in ("additions", "composed_pairs"):
        if getattr(config, name) is not None and (config.neuron_map is not None or config.neuron_counts is None):
            raise ConfigError(name, getattr(config, name), "is filled when an adapter with a neuron map grows.")
    if config.composed_pairs is not None:
        composed = {str(pair) for pair in parse_pairs(config.composed_pairs, "composed_pairs")}
        if composed - set(config.language_pairs or ()):
            raise ConfigError("composed_pairs", config.composed_pairs, "are not all among the adapter's pairs.")
    if config.additions is not None:
        for addition in read_additions(config.additions, config.language_pairs or ()):
            if addition.replaces_general:
                check_replacing(config, addition)


def check_replacing(config: LanderConfig, addition: Addition) -> None:
    """Check that blocks of an addition can stand in the place of components of the general one.

    Raises:
        ConfigError: One of the two is none of low rank, or their outputs are not added.
    """
    remedy = "that others could begin as; leave out init_from."
    if config.tune == "specific":
        raise ConfigError("tune", config.tune, f"has no general block {remedy}")
    if config.tune == "layers":
        problem = "has a general block on all neurons, and a language's has those of no other language"
        raise ConfigError("tune", config.tune, f"{problem}; leave out init_from.")
    for name, rank in (("general_rank", config.general_rank), ("specific_rank", addition.rank)):
        if rank is None:
            raise ConfigError(name, rank, f"has no components {remedy}")
    if config.car in INPUT_DEPENDENT:
        problem = "opens general and specific blocks by the input, so none can stand in another's place"
        raise ConfigError("car", config.car, f"{problem}; leave out init_from.")


def beginning(config: LanderConfig, addition: Addition, init_from: str, tune: str) -> Addition:
    """Return an addition whose blocks begin as copies, after a check that they can.

    Args:
        config: Of the adapter before.
        addition: What is added to it.
        init_from: `"general"`, or a language that was added earlier.
        tune: Neurons that the blocks are on, as `add_language_pairs` takes it.

    Raises:
        ConfigError: They cannot.
    """
    if init_from == GENERAL:
        if tune != "pair":
            raise ConfigError("tune", tune, "leaves out the neurons of the general block; leave out init_from.")
        replacing = replace(addition, replaces_general=True)
        check_replacing(config, replacing)
        apart = {addition.projections, config.projections} == {"input", "output"}
        if apart and not set(addition.attention_modules or ()) & set(config.attention_modules or ()):
            problem = f"has nothing in common with the general block, which is on {config.projections!r}"
            raise ConfigError("projections", addition.projections, f"{problem}; leave out init_from.")
        return replacing
    if init_from not in list(config.added):
        added = ", ".join((GENERAL, *config.added))
        raise ConfigError("init_from", init_from, f"must be 'general' or a language that was added; here: {added}.")
    earlier = config.added[init_from]
    own, other = (_form(each, config) for each in (addition, earlier))
    for option, value in own.items():
        if value != other[option]:
            remedy = f"the blocks of {init_from!r} have {other[option]!r}; give the same, or leave out init_from."
            raise ConfigError(option, value, remedy)
    return replace(addition, replaces_general=earlier.replaces_general)


def _form(addition: Addition, config: LanderConfig) -> dict[str, Any]:
    """The form of an addition's blocks, by the options that say it."""
    return {
        "specific_rank": addition.rank,
        "projections": addition.projections or config.projections,
        "attention_modules": addition.attention_modules,
        "attention_rank": addition.attention_modules and addition.attention_rank,
    }


def grown_layout(config: LanderConfig, counts: Mapping[str, Any]) -> dict[str, Any]:
    """Tell what of an FFN's layout depends on what was added to an adapter.

    Args:
        config: Of the adapter.
        counts: Its `neuron_counts` at the FFN.

    Returns:
        Arguments of `BlockLayout`.
    """
    added, untuned = config.added, tuple(counts.get("untuned", ()))
    last = list(added.values())[-1] if added else None
    attention: dict[str, tuple[tuple[Role, ...], int]] = {}
    everywhere = config.adapts_all_attention
    if isinstance(config.attention_modules, list) and (everywhere or GENERAL not in untuned):
        attention[GENERAL] = (tuple(config.attention_modules), config.attention_rank)
    for language in (language for language in sorted(added) if everywhere or language in counts["specific"]):
        if (roles := added[language].attention_modules) is not None:
            attention[language] = (tuple(roles), added[language].attention_rank)
    return {
        "on_general": dict(counts.get("on_general", {})),
        "untuned": untuned,
        "added": {
            language: Form(addition.rank, addition.projections or config.projections, addition.replaces_general)
            for language, addition in added.items()
        },
        "own_gates": tuple(pair for pair in counts["language_pairs"] if pair in config.later_pairs),
        "trained": None if last is None else (*last.languages, *last.language_pairs),
        "attention": attention,
    }
