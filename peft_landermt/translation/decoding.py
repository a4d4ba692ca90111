"""Translating with a causal language model or an encoder-decoder."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Integral
from typing import Any

import torch
from torch import nn
from transformers import StoppingCriteria, StoppingCriteriaList

from ..errors import ConfigError, CorpusError
from ..language_pair import TRANSLATION_PROMPT, LanguagePair, parse_pair
from ..padding import pad_rows, padding_id
from ..progress import progress_bar
from ..seq2seq import encode_source, generation_start, is_encoder_decoder
from .models import evaluating, routing_arguments
from .templates import build_prompt


@dataclass(frozen=True)
class Translations:
    """Translations in the order of their sources.

    Attributes:
        texts: One line each; empty where the model gave nothing.
        num_runaway: How many reached the limit of new tokens without an end.
    """

    texts: list[str]
    num_runaway: int


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


class _StopAtLimit(StoppingCriteria):
    """A row is done at its own limit of new tokens, whatever rows it shares the batch with."""

    def __init__(self, limits: Sequence[int], start_length: int) -> None:
        self.limits = torch.tensor(limits)
        self.start_length = start_length

    def __call__(self, input_ids: torch.Tensor, scores: Any, **kwargs: Any) -> torch.Tensor:
        beams = input_ids.shape[0] // len(self.limits)
        limits = self.limits.to(input_ids.device).repeat_interleave(beams)
        return input_ids.shape[1] - self.start_length >= limits


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
        max_new_tokens: Limit per sentence; by default twice the tokens of its source plus 16.
        template: Prompt template; by default `TRANSLATION_PROMPT`, and for an encoder-decoder the way its tokenizer
            marks languages.
        progress: Whether to show a progress bar.
        adapter_names: For each sentence the loaded adapter that translates it, as in PEFT; the active one by default.
        generation_options: Passed to `generate`, such as `num_beams=4`; greedy decoding by default.

    Returns:
        One line of text per sentence, cut at the end of the sentence.

    Raises:
        LanguagePairError: The pair is malformed, or not in the adapter.
        CorpusError: `sentences` is a string instead of a list, or lists of pairs or adapters have not one for each.
        ConfigError: A generation option is out of range, or asks for something else than one text a sentence.
    """
    return translate_counted(
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
    ).texts


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
    """Like `translate`, and count translations that found no end."""
    if isinstance(sentences, str):
        raise CorpusError("sentences", sentences, f"expected a list of sentences: [{sentences!r}].")
    if not isinstance(batch_size, int) or batch_size < 1:
        raise CorpusError("batch_size", batch_size, "must be a positive integer.")
    _check_generation(generation_options)
    pairs = _pairs_of(language_pair, len(sentences))
    if adapter_names is not None and len(adapter_names) != len(sentences):
        raise CorpusError("adapter_names", len(adapter_names), f"need one for each of the {len(sentences)} sentences.")
    batches = _batches(sentences, pairs, batch_size, by_target=is_encoder_decoder(model))
    texts = [""] * len(sentences)
    num_runaway = 0
    description = f"Translating {', '.join(dict.fromkeys(map(str, pairs)))}"
    with evaluating(model), progress_bar(sum(map(len, batches)), description, progress) as bar:
        for chosen in batches:
            sources = [" ".join(sentences[index].split()) for index in chosen]
            names = {} if adapter_names is None else {"adapter_names": [adapter_names[index] for index in chosen]}
            lines, runaway = _translate_batch(
                model,
                tokenizer,
                sources,
                [pairs[index] for index in chosen],
                max_new_tokens,
                template,
                {**generation_options, **names},
            )
            for index, line in zip(chosen, lines, strict=True):
                texts[index] = line
            num_runaway += runaway
            bar.update(len(chosen))
    return Translations(texts, num_runaway)


def _check_generation(options: dict[str, Any]) -> None:
    beams = options.get("num_beams", 1)
    if not isinstance(beams, Integral) or beams < 1:
        raise ConfigError("num_beams", beams, "must be a positive integer.")
    for name, allowed in (("num_return_sequences", 1), ("return_dict_in_generate", False)):
        if options.get(name) not in (None, allowed):
            raise ConfigError(name, options[name], "each sentence gets one line of text; for more, call generate.")


def _pairs_of(language_pair: str | Sequence[str], count: int) -> list[LanguagePair]:
    """The pair of every sentence."""
    if isinstance(language_pair, str) or not isinstance(language_pair, Sequence):
        return [parse_pair(language_pair)] * count
    if len(language_pair) != count:
        raise CorpusError("language_pair", len(language_pair), f"need one for each of the {count} sentences.")
    return [parse_pair(pair) for pair in language_pair]


def _batches(
    sentences: Sequence[str], pairs: list[LanguagePair], batch_size: int, *, by_target: bool
) -> list[list[int]]:
    """Indices of the sentences that have text, those of like length together; with `by_target` one target a batch."""
    groups: dict[str, list[int]] = defaultdict(list)
    for index in sorted(range(len(sentences)), key=lambda index: len(sentences[index])):
        if sentences[index].strip():
            groups[pairs[index].target if by_target else ""].append(index)
    return [
        members[start : start + batch_size]
        for members in groups.values()
        for start in range(0, len(members), batch_size)
    ]


def _translate_batch(
    model: nn.Module,
    tokenizer: Any,
    sources: list[str],
    pairs: list[LanguagePair],
    max_new_tokens: int | None,
    template: str | None,
    options: dict[str, Any],
) -> tuple[list[str], int]:
    if max_new_tokens is None:
        limits = [16 + 2 * len(tokenizer(source)["input_ids"]) for source in sources]
    else:
        limits = [max_new_tokens] * len(sources)
    routing = routing_arguments(model, [str(pair) for pair in pairs], options.get("adapter_names"))
    pad = padding_id(tokenizer)
    if is_encoder_decoder(model):
        encoded = [
            encode_source(tokenizer, source, pair, template=template)
            for source, pair in zip(sources, pairs, strict=True)
        ]
        start: dict[str, Any] = dict(generation_start(tokenizer, pairs[0]))
        given = 1  # the decoder's own start; then, for some, the language, which counts as new
        first = 2 if "forced_bos_token_id" in start else 1
        ids, mask = pad_rows(encoded, pad)
        criteria = []
    else:
        prompt = TRANSLATION_PROMPT if template is None else template
        encoded = [
            tokenizer(build_prompt(source, str(pair), prompt))["input_ids"]
            for source, pair in zip(sources, pairs, strict=True)
        ]
        ids, mask = pad_rows(encoded, pad, "left")
        given = first = ids.shape[1]
        start, criteria = {}, [_StopAtLineEnd(tokenizer, first)]
    criteria.append(_StopAtLimit(limits, given))
    device = model.get_input_embeddings().weight.device  # type: ignore[operator]
    output = model.generate(  # type: ignore[operator]
        input_ids=ids.to(device),
        attention_mask=mask.to(device),
        max_new_tokens=max(limits),
        pad_token_id=pad,
        **{
            "do_sample": False,
            "num_beams": 1,
            "stopping_criteria": StoppingCriteriaList(criteria),
            **start,
            **options,
        },
        **routing,
    )
    configured = options.get("eos_token_id", getattr(model.generation_config, "eos_token_id", None))
    ends = {tokenizer.eos_token_id, *(configured if isinstance(configured, (list, tuple)) else [configured])}
    lines, num_runaway = [], 0
    for limit, row in zip(limits, output[:, first:].tolist(), strict=True):
        room = limit - (first - given)
        row = row[:room]
        end = next((index for index, token in enumerate(row) if token in ends), None)
        ended = end is not None
        text = tokenizer.decode(row if end is None else row[: end + 1], skip_special_tokens=True)
        line, line_end, _ = text.lstrip().partition("\n")
        num_runaway += not ended and not line_end and len(row) >= room
        lines.append(line.strip())
    return lines, num_runaway
