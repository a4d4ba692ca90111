"""How many tokens a translation may have: enough for any tokenizer and script, and no more for one that goes round."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from transformers import StoppingCriteria

from ..language_pair import LanguagePair, parse_language

_BYTES = {"Latn": 1.5, **dict.fromkeys(("Cyrl", "Grek", "Armn", "Arab", "Hebr", "Hans", "Hant", "Jpan", "Kore"), 2.5)}
"""Bytes of UTF-8 that a translation takes for each Latin letter of an English text, by script: Chinese characters
take three, but each says as much as three letters."""
_MOST_BYTES = 5.0
"""Three bytes a letter, and more letters: the scripts of South and Southeast Asia, Georgian, Amharic."""
_DENSE = {"CJK": 3, "HIRAGANA": 3, "KATAKANA": 3, "HANGUL": 2}
"""How many Latin letters a character of these says as much as."""

_TOKENS_OF_A_ROUND = 16
_LONGEST_PERIOD = 64


def usual_limit(tokenizer: Any, source: str) -> int:
    """Return tokens that most translations are within: twice those of the source and 16."""
    return 16 + 2 * len(tokenizer(source)["input_ids"])


def longest_limit(tokenizer: Any, source: str, pair: LanguagePair) -> int:
    """Return tokens that every translation is within: twice the bytes that are expected in the target's script, and 32
    letters, since no token is less than a byte."""
    letters = sum(_weight(character) for character in source)
    width = _BYTES.get(parse_language(pair.target).written_in, _MOST_BYTES)
    return max(usual_limit(tokenizer, source), round(width * (32 + 2 * letters)))


def _weight(character: str) -> int:
    return 1 if character.isascii() else _DENSE.get(unicodedata.name(character, "").partition(" ")[0], 1)


def goes_round(tokens: Sequence[int]) -> bool:
    """Tell whether the last 16 tokens, and the last three of equal pieces, say the same again and again."""
    for period in range(1, min(_LONGEST_PERIOD, len(tokens) // 3) + 1):
        length = max(_TOKENS_OF_A_ROUND, 3 * period)
        if tokens[-1] == tokens[-1 - period] and length <= len(tokens):
            end = tokens[-length:]
            if end[period:] == end[:-period]:
                return True
    return False


def room_in_context(model: nn.Module) -> int | None:
    """Return positions that the model has for a prompt and its continuation, or each of source and translation; None
    where there is no such limit."""
    config: Any = getattr(model, "config", None)
    text = config.get_text_config(decoder=True) if hasattr(config, "get_text_config") else config
    return getattr(text, "max_position_embeddings", None)


class StopAtLimit(StoppingCriteria):
    """A row is done at its own limit of new tokens, whatever rows it shares the batch with; and beyond the usual
    length, when it goes round in circles.

    Args:
        limits: For every row, most new tokens.
        usual: For every row, the new tokens after which it must not go round.
        start_length: Tokens that are given.
    """

    def __init__(self, limits: Sequence[int], usual: Sequence[int], start_length: int) -> None:
        self.limits, self.usual, self.start_length = list(limits), list(usual), start_length

    def __call__(self, input_ids: torch.Tensor, scores: Any, **kwargs: Any) -> torch.Tensor:
        new = input_ids.shape[1] - self.start_length
        beams = input_ids.shape[0] // len(self.limits)
        limits, usual = ([value for value in values for _ in range(beams)] for values in (self.limits, self.usual))
        done = [new >= limit for limit in limits]
        late = [row for row, least in enumerate(usual) if new >= least and not done[row]]
        if late:
            for row, tokens in zip(late, input_ids[late, self.start_length :].tolist(), strict=True):
                done[row] = goes_round(tokens)
        return torch.tensor(done, device=input_ids.device)
