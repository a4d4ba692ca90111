"""Translating with a causal language model or an encoder-decoder."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from numbers import Integral
from typing import Any

import torch
from torch import nn
from transformers import StoppingCriteria, StoppingCriteriaList

from ..errors import ConfigError, CorpusError
from ..padding import pad_rows, padding_id
from ..progress import progress_bar
from ..seq2seq import generation_start, is_encoder_decoder
from .limits import StopAtLimit, goes_round
from .models import evaluating, routing_arguments
from .requests import Request, make_batches, make_requests


@dataclass(frozen=True)
class Translations:
    """Translations in the order of their sources.

    Attributes:
        texts: One line each; empty where the model gave nothing.
        num_runaway: How many found no end: they reached the limit of new tokens, or said the same again and again.
        cut: Indices of these.
    """

    texts: list[str]
    num_runaway: int
    cut: tuple[int, ...] = ()


class _StopAtLineEnd(StoppingCriteria):
    """A translation is one line: a row is done at the first line end after some text."""

    def __init__(self, tokenizer: Any, prompt_length: int) -> None:
        self.tokenizer = tokenizer
        self.prompt_length = prompt_length
        self.ends: dict[int, bool] = {}

    def __call__(self, input_ids: torch.Tensor, scores: Any, **kwargs: Any) -> torch.Tensor:
        last = input_ids[:, -1].tolist()
        for token in set(last) - self.ends.keys():
            self.ends[token] = "\n" in self.tokenizer.decode([token])
        done = [self.ends[token] and self._has_line(input_ids[row]) for row, token in enumerate(last)]
        return torch.tensor(done, device=input_ids.device)

    def _has_line(self, ids: torch.Tensor) -> bool:
        return "\n" in self.tokenizer.decode(ids[self.prompt_length :].tolist(), skip_special_tokens=True).lstrip()


def translate(
    model: nn.Module,
    tokenizer: Any,
    sentences: Sequence[str],
    language_pair: str | Sequence[str],
    batch_size: int = 16,
    max_new_tokens: int | None = None,
    template: str | None = None,
    progress: bool = False,
    adapter_names: Sequence[str] | None = None,
    **generation_options: Any,
) -> list[str]:
    """Translate sentences, in order.

    Args:
        model: A causal language model or an encoder-decoder: a base model, or one with adapters of any PEFT method.
            Where the adapter is a LANDER one with pairs, it must hold `language_pair`, and routes by it.
        tokenizer: Its tokenizer; used as it is, never changed.
        sentences: Source sentences. An empty one gives an empty translation.
        language_pair: Direction such as `"en-de"`, or a list with one for each sentence. Pairs share batches, except
            that a batch of an encoder-decoder has one target language.
        batch_size: Sentences per call of `generate`.
        max_new_tokens: Limit per sentence. By default more than any translation needs, by the bytes of its source and
            the script of its target; one that goes round in circles ends before. A warning names the translations that
            found no end; `translate_counted` returns them.
        template: Prompt template (see [`build_prompt`][peft_landermt.translation.build_prompt]); by default the one
            that the adapter was trained with, else `TRANSLATION_PROMPT`, and for an encoder-decoder the way its
            tokenizer marks languages.
        progress: Whether to show a progress bar.
        adapter_names: For each sentence the loaded adapter that translates it, as in PEFT; the active one by default.
        generation_options: Passed to `generate`, such as `num_beams=4`; greedy decoding by default.

    Returns:
        One line of text per sentence, cut at the end of the sentence.

    Raises:
        LanguagePairError: The pair is malformed, or not in the adapter.
        CorpusError: `sentences` is a string instead of a list, or lists of pairs or adapters have not one for each; a
            sentence is no text, or longer than the model can read; `template` is none.
        ConfigError: A generation option is out of range, or asks for something else than one text a sentence; active
            adapters were trained with different templates.
    """
    found = translate_counted(
        model,
        tokenizer,
        sentences,
        language_pair,
        batch_size,
        max_new_tokens,
        template,
        progress,
        adapter_names,
        **generation_options,
    )
    if found.cut:
        warnings.warn(
            f"{len(found.cut)} of {len(found.texts)} translations found no end and were cut: "
            f"{', '.join(map(str, found.cut))}; max_new_tokens sets the limit.",
            stacklevel=2,
        )
    return found.texts


@torch.no_grad()
def translate_counted(
    model: nn.Module,
    tokenizer: Any,
    sentences: Sequence[str],
    language_pair: str | Sequence[str],
    batch_size: int = 16,
    max_new_tokens: int | None = None,
    template: str | None = None,
    progress: bool = False,
    adapter_names: Sequence[str] | None = None,
    **generation_options: Any,
) -> Translations:
    """Translate as `translate` does, and tell which translations found no end."""
    if not isinstance(batch_size, int) or batch_size < 1:
        raise CorpusError("batch_size", batch_size, "must be a positive integer.")
    _check_generation(generation_options)
    requests = make_requests(model, tokenizer, sentences, language_pair, max_new_tokens, template, adapter_names)
    batches = make_batches(model, requests, batch_size)
    texts, cut = [""] * len(sentences), []
    description = f"Translating {', '.join(dict.fromkeys(str(request.pair) for request in requests))}"
    with evaluating(model), progress_bar(len(requests), description, progress) as bar:
        for batch in batches:
            lines = _translate_batch(model, tokenizer, batch, generation_options)
            for request, (line, ended) in zip(batch, lines, strict=True):
                texts[request.index] = line
                if not ended:
                    cut.append(request.index)
            bar.update(len(batch))
    return Translations(texts, len(cut), tuple(sorted(cut)))


def _check_generation(options: dict[str, Any]) -> None:
    beams = options.get("num_beams", 1)
    if not isinstance(beams, Integral) or beams < 1:
        raise ConfigError("num_beams", beams, "must be a positive integer.")
    for name, allowed in (("num_return_sequences", 1), ("return_dict_in_generate", False)):
        if options.get(name) not in (None, allowed):
            raise ConfigError(name, options[name], "each sentence gets one line of text; for more, call generate.")


def _translate_batch(
    model: nn.Module, tokenizer: Any, batch: list[Request], options: dict[str, Any]
) -> Iterator[tuple[str, bool]]:
    """Give every request its line, and whether it found an end."""
    pad = padding_id(tokenizer)
    two_stacks = is_encoder_decoder(model)
    adapters = [request.adapter for request in batch if request.adapter is not None] or None
    routing = routing_arguments(model, [str(request.pair) for request in batch], adapters)
    ids, mask = pad_rows([request.ids for request in batch], pad, "right" if two_stacks else "left")
    start: dict[str, Any] = dict(generation_start(tokenizer, batch[0].pair)) if two_stacks else {}
    # an encoder-decoder is given its decoder's own start; then, for some, comes the language, which counts as new
    given = 1 if two_stacks else ids.shape[1]
    first = given + ("forced_bos_token_id" in start)
    limits, usual = [request.limit for request in batch], [request.usual for request in batch]
    criteria: list[Any] = [] if two_stacks else [_StopAtLineEnd(tokenizer, first)]
    ends = _ends(model, tokenizer, batch[0], options)
    device = model.get_input_embeddings().weight.device  # type: ignore[operator]
    output = model.generate(  # type: ignore[operator]
        input_ids=ids.to(device),
        attention_mask=mask.to(device),
        max_new_tokens=max(limits),
        pad_token_id=pad,
        **{
            "do_sample": False,
            "num_beams": 1,
            "stopping_criteria": StoppingCriteriaList([*criteria, StopAtLimit(limits, usual, given)]),
            **start,
            **options,
            **({"eos_token_id": sorted(ends)} if ends else {}),
        },
        **({"adapter_names": adapters} if adapters else {}),
        **routing,
    )
    for request, row in zip(batch, output[:, first:].tolist(), strict=True):
        yield _read(tokenizer, row, request, request.limit - (first - given), ends)


def _ends(model: nn.Module, tokenizer: Any, request: Request, options: dict[str, Any]) -> set[int]:
    """Return tokens that end a translation: the tokenizer's, the model's and the prompt's."""
    configured = options.get("eos_token_id", getattr(model.generation_config, "eos_token_id", None))
    several = configured if isinstance(configured, (list, tuple)) else [configured]
    return {end for end in (tokenizer.eos_token_id, *several, request.end) if end is not None}


def _read(tokenizer: Any, row: list[int], request: Request, room: int, ends: set[int]) -> tuple[str, bool]:
    """Return the line that the new tokens of a row say, and whether it found an end within `room` tokens."""
    row = row[:room]
    end = next((place for place, token in enumerate(row) if token in ends), len(row))
    said = row[:end]
    while end == len(row) and said and said[-1] == padding_id(tokenizer):
        said.pop()
    shown = row[: end + 1] if end < len(row) and row[end] != request.end else said
    line, line_end, _ = tokenizer.decode(shown, skip_special_tokens=True).lstrip().partition("\n")
    cut = end == len(row) >= room or (len(said) >= request.usual and goes_round(said))
    return line.strip(), bool(line_end) or not cut
