"""Sentences that are to be translated: their prompts, and how long their translations may be."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from ..errors import CorpusError
from ..language_pair import TRANSLATION_PROMPT, LanguagePair, parse_pair
from ..prompt import Prompt, encode_prompt
from ..seq2seq import encode_source, is_encoder_decoder
from .limits import longest_limit, room_in_context, usual_limit
from .models import prompt_of
from .whitespace import one_space

_ROUNDED = 64


@dataclass(frozen=True)
class Request:
    """A sentence that has text, ready for the model.

    Attributes:
        index: Its place among the sentences.
        pair: Its direction.
        adapter: The adapter that translates it, if one was named.
        ids: Tokens of its prompt, or of the source.
        end: Token that ends its translation, beside those of tokenizer and model; None for none.
        usual: New tokens after which it must not go round.
        limit: Most new tokens.
    """

    index: int
    pair: LanguagePair
    adapter: str | None
    ids: list[int]
    end: int | None
    usual: int
    limit: int


def make_requests(
    model: nn.Module,
    tokenizer: Any,
    sentences: Sequence[str],
    language_pair: str | Sequence[str],
    max_new_tokens: int | None,
    template: str | None,
    adapter_names: Sequence[str] | None,
) -> list[Request]:
    """Make a request for every sentence that has text; what cannot be translated is refused before anything is.

    Arguments and errors are those of `translate`.
    """
    if isinstance(sentences, str):
        raise CorpusError("sentences", sentences, f"expected a list of sentences: [{sentences!r}].")
    pairs = _pairs_of(language_pair, len(sentences))
    if adapter_names is not None and len(adapter_names) != len(sentences):
        raise CorpusError("adapter_names", len(adapter_names), f"need one for each of the {len(sentences)} sentences.")
    names: Sequence[str | None] = [None] * len(sentences) if adapter_names is None else adapter_names
    default = None if is_encoder_decoder(model) else TRANSLATION_PROMPT
    templates = {name: template or prompt_of(model, default, name) for name in set(names)}
    room = room_in_context(model)
    requests = []
    for index, (sentence, pair, name) in enumerate(zip(sentences, pairs, names, strict=True)):
        if not isinstance(sentence, str):
            raise CorpusError("sentences", sentence, f"number {index} is no text.")
        source = one_space(sentence)
        if not source:
            continue
        ids, end = _encode(model, tokenizer, source, pair, templates[name])
        left = None if room is None else room - (1 if is_encoder_decoder(model) else len(ids))
        if room is not None and left is not None and (left < 1 or len(ids) > room):
            remedy = f"number {index} has {len(ids)} tokens with its prompt, and the model reads {room}; split it."
            raise CorpusError("sentences", source, remedy)
        usual = usual_limit(tokenizer, source) if max_new_tokens is None else max_new_tokens
        limit = longest_limit(tokenizer, source, pair) if max_new_tokens is None else max_new_tokens
        requests.append(
            Request(index, pair, name, ids, end, usual, limit if left is None else _within(left, limit, usual))
        )
    return requests


def make_batches(model: nn.Module, requests: Sequence[Request], batch_size: int) -> list[list[Request]]:
    """Put requests of like length together; one end a batch and, for an encoder-decoder, one target. Every row of a
    batch is written to as long as its longest one, and none beyond the positions that the model has."""
    two_stacks, room = is_encoder_decoder(model), room_in_context(model)
    groups: dict[Any, list[list[Request]]] = defaultdict(list)
    for request in sorted(requests, key=lambda request: len(request.ids)):
        batches = groups[request.end, request.pair.target if two_stacks else ""]
        full = not batches or len(batches[-1]) == batch_size
        if not full and room is not None and not two_stacks:
            full = len(request.ids) + max(one.limit for one in (*batches[-1], request)) > room
        if full:
            batches.append([])
        batches[-1].append(request)
    return [batch for batches in groups.values() for batch in batches]


def _within(room: int, limit: int, usual: int) -> int:
    """Return a limit within the positions that are left; rounded, where that leaves enough, so that prompts of unlike
    length can share a batch."""
    rounded = room - room % _ROUNDED
    return min(limit, rounded if rounded >= usual else room)


def _encode(
    model: nn.Module, tokenizer: Any, source: str, pair: LanguagePair, template: str | None
) -> tuple[list[int], int | None]:
    """Return tokens of a prompt, or of the source for an encoder, and the token that ends the translation."""
    if template is None or is_encoder_decoder(model):
        return encode_source(tokenizer, source, pair, template=template), None
    prompt = Prompt.parse(template)
    end = prompt.end_token(tokenizer) if prompt.end else None
    return encode_prompt(tokenizer, prompt.fill(source, pair)), end


def _pairs_of(language_pair: str | Sequence[str], count: int) -> list[LanguagePair]:
    """Return the pair of every sentence."""
    if isinstance(language_pair, str) or not isinstance(language_pair, Sequence):
        return [parse_pair(language_pair)] * count
    if len(language_pair) != count:
        raise CorpusError("language_pair", len(language_pair), f"need one for each of the {count} sentences.")
    return [parse_pair(pair) for pair in language_pair]
