"""Translating with a causal language model or an encoder-decoder."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from tqdm.auto import tqdm
from transformers import StoppingCriteria, StoppingCriteriaList

from ..errors import CorpusError
from ..language_pair import TRANSLATION_PROMPT, LanguagePair, parse_pair
from ..padding import pad_rows, padding_id
from ..seq2seq import encode_source, generation_start, is_encoder_decoder
from .models import evaluating, routed_pairs
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


def translate(
    model: nn.Module,
    tokenizer: Any,
    sentences: Sequence[str],
    language_pair: str,
    batch_size: int = 16,
    max_new_tokens: int | None = None,
    template: str | None = None,
    progress: bool = False,
    **generation_options: Any,
) -> list[str]:
    """Translate sentences, in order.

    Args:
        model: A causal language model or an encoder-decoder: a base model, or one with adapters of any PEFT method.
            Where the adapter is a LANDER one with pairs, it must hold `language_pair`, and routes by it.
        tokenizer: Its tokenizer; used as it is, never changed.
        sentences: Source sentences. An empty one gives an empty translation.
        language_pair: Direction such as `"en-de"`.
        batch_size: Sentences per call of `generate`.
        max_new_tokens: Limit per sentence; by default twice the longest source of the batch plus 16.
        template: Prompt template; by default `TRANSLATION_PROMPT`, and for an encoder-decoder the way its tokenizer
            marks languages.
        progress: Whether to show a progress bar.
        generation_options: Passed to `generate`, such as `num_beams=4`; greedy decoding by default.

    Returns:
        One line of text per sentence, cut at the end of the sentence.

    Raises:
        LanguagePairError: The pair is malformed, or not in the adapter.
        CorpusError: `sentences` is a string instead of a list.
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
        **generation_options,
    ).texts


@torch.no_grad()
def translate_counted(
    model: nn.Module,
    tokenizer: Any,
    sentences: Sequence[str],
    language_pair: str,
    batch_size: int = 16,
    max_new_tokens: int | None = None,
    template: str | None = None,
    progress: bool = False,
    **generation_options: Any,
) -> Translations:
    """Like `translate`, and count translations that found no end."""
    pair = parse_pair(language_pair)
    if isinstance(sentences, str):
        raise CorpusError("sentences", sentences, f"expected a list of sentences: [{sentences!r}].")
    if not isinstance(batch_size, int) or batch_size < 1:
        raise CorpusError("batch_size", batch_size, "must be a positive integer.")
    texts = [""] * len(sentences)
    num_runaway = 0
    order = sorted((i for i, text in enumerate(sentences) if text.strip()), key=lambda i: (len(sentences[i]), i))
    with evaluating(model), tqdm(total=len(order), desc=f"Translating {pair}", disable=not progress) as bar:
        for start in range(0, len(order), batch_size):
            chosen = order[start : start + batch_size]
            sources = [" ".join(sentences[index].split()) for index in chosen]
            lines, runaway = _translate_batch(
                model, tokenizer, sources, pair, max_new_tokens, template, generation_options
            )
            for index, line in zip(chosen, lines, strict=True):
                texts[index] = line
            num_runaway += runaway
            bar.update(len(chosen))
    return Translations(texts, num_runaway)


def _translate_batch(
    model: nn.Module,
    tokenizer: Any,
    sources: list[str],
    pair: LanguagePair,
    max_new_tokens: int | None,
    template: str | None,
    options: dict[str, Any],
) -> tuple[list[str], int]:
    if max_new_tokens is None:
        max_new_tokens = 16 + 2 * max(len(tokenizer(source)["input_ids"]) for source in sources)
    routing = {"language_pairs": [str(pair)] * len(sources)} if routed_pairs(model) else {}
    pad = padding_id(tokenizer)
    if is_encoder_decoder(model):
        encoded = [encode_source(tokenizer, source, pair, template=template) for source in sources]
        start: dict[str, Any] = dict(generation_start(tokenizer, pair))
        first = 2 if "forced_bos_token_id" in start else 1  # the decoder's own start, then the language
        ids, mask = pad_rows(encoded, pad)
    else:
        prompt = TRANSLATION_PROMPT if template is None else template
        encoded = [tokenizer(build_prompt(source, str(pair), prompt))["input_ids"] for source in sources]
        ids, mask = pad_rows(encoded, pad, "left")
        first = ids.shape[1]
        start = {"stopping_criteria": StoppingCriteriaList([_StopAtLineEnd(tokenizer, first)])}
    device = model.get_input_embeddings().weight.device  # type: ignore[operator]
    output = model.generate(  # type: ignore[operator]
        input_ids=ids.to(device),
        attention_mask=mask.to(device),
        max_new_tokens=max_new_tokens,
        pad_token_id=pad,
        **{"do_sample": False, "num_beams": 1, **start, **options},
        **routing,
    )
    configured = options.get("eos_token_id", getattr(model.generation_config, "eos_token_id", None))
    ends = {tokenizer.eos_token_id, *(configured if isinstance(configured, (list, tuple)) else [configured])}
    lines, num_runaway = [], 0
    for row in output[:, first:].tolist():
        end = next((index for index, token in enumerate(row) if token in ends), None)
        ended = end is not None
        text = tokenizer.decode(row if end is None else row[: end + 1], skip_special_tokens=True)
        line, line_end, _ = text.lstrip().partition("\n")
        num_runaway += not ended and not line_end and len(row) >= max_new_tokens
        lines.append(line.strip())
    return lines, num_runaway
