"""The parts of an adapter, of one pair or of one language each, and one adapter of such parts."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence

import torch

from ..errors import AdapterError
from ..routed.adapters import Part, add_tensors, check_same
from ..routed.folder import PREFIX
from ..routed.state import State
from .config import LsloConfig
from .index import SIDES, position_of, word_of, words_in

_MARK = ".lslo_blocks."


def restrict(config: LsloConfig, state: Mapping[str, torch.Tensor], part: str) -> tuple[LsloConfig, State]:
    """Return config and state of one part of an adapter: a pair, or a language with all pairs that it is in."""
    chosen = copy.copy(config)
    chosen.inference_mode, chosen.source = True, None
    if part in (config.language_pairs or ()):
        chosen.language_pairs, chosen.languages = [part], None
    else:
        chosen.language_pairs = [str(pair) for pair in config.parsed_pairs if part in pair]
        chosen.languages = [part]
    return _with_needed(chosen, state)


def join(parts: Sequence[Part]) -> tuple[LsloConfig, State]:
    """Make config and state of one adapter of parts; see [`join_adapters`].

    The joined adapter serves those pairs of the parts that all factors are there of. Parts may hold the same language,
    if they hold the same factors of it.
    """
    first, config, state = parts[0]
    assert isinstance(config, LsloConfig)
    pairs, ranks = dict.fromkeys(config.parsed_pairs), _ranks(config)
    held = {word: {*config.ranks_for(word)} for word in words_in(config.index)}
    for folder, other, other_state in parts[1:]:
        check_same(first, config, folder, other, ("prompt", "pruned", *config.FORM))
        assert isinstance(other, LsloConfig)
        pairs |= dict.fromkeys(other.parsed_pairs)
        for word, languages in held.items():
            languages.update(other.ranks_for(word))
        for language, rank in _ranks(other).items():
            if ranks.setdefault(language, rank) != rank:
                problem = f"cannot be joined: {language} has rank {rank} there, {ranks[language]} in the others."
                raise AdapterError("folders", [first, folder], problem)
        add_tensors(state, other_state, folder)
    served = [
        pair
        for pair in pairs
        if {*pair} <= ranks.keys() and all(pair[side] in held[word] for word in held for side in SIDES[word])
    ]
    if not served:
        named = ", ".join(sorted(ranks))
        raise AdapterError("folders", [part.folder for part in parts], f"hold {named}, but no pair of two of them.")
    made = copy.copy(config)
    made.language_pairs, made.languages = [str(pair) for pair in served], None
    made.rank = next(iter(ranks.values())) if len({*ranks.values()}) == 1 else ranks
    return _with_needed(made, state)


def _ranks(config: LsloConfig) -> dict[str, int]:
    given = config.rank
    return dict(given) if isinstance(given, dict) else dict.fromkeys(config.held_languages, given)


def _with_needed(config: LsloConfig, state: Mapping[str, torch.Tensor]) -> tuple[LsloConfig, State]:
    """Leave out the ranks and tensors of languages, and of sides of them, that the config's pairs do not need."""
    if isinstance(config.rank, dict):
        config.rank = {language: config.rank[language] for language in config.held_languages}
    assert config.index is not None and not isinstance(config.index, str)
    held = {word: config.ranks_for(word) for word in words_in(config.index)}
    kept = {}
    for key, value in state.items():
        module, mark, name = key.removeprefix(PREFIX).partition(_MARK)
        if mark and name != "index_logits":
            place = position_of(module, isinstance(config.index, dict))
            assert place is not None
            if name.rpartition("_")[0] not in held[word_of(config.index, place)]:
                continue
        kept[key] = value
    return config, kept
