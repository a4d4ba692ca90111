"""What an adapter got after it was made: languages with blocks of their own, and pairs that nobody trained."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import TYPE_CHECKING, Any

from ..choices import Projections, Role
from ..errors import ConfigError
from ..language_pair import languages_of, parse_pairs
from ..routed.schema import check_fields
from .layout import GENERAL, Form

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
    """

    languages: list[str]
    language_pairs: list[str]
    rank: int | None
    attention_modules: list[Role] | None
    attention_rank: int
    neuron_map_signature: str | None
    projections: Projections | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return the fields, as a config keeps them."""
        return {name: value for name, value in asdict(self).items() if name != "projections" or value is not None}


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
        if values.keys() | {"projections"} != {item.name for item in fields(Addition)}:
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
        read_additions(config.additions, config.language_pairs or ())


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
            language: Form(addition.rank, addition.projections or config.projections)
            for language, addition in added.items()
        },
        "own_gates": tuple(pair for pair in counts["language_pairs"] if pair in config.later_pairs),
        "trained": None if last is None else (*last.languages, *last.language_pairs),
        "attention": attention,
    }
