"""Batches of translation examples for training."""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from ..errors import CorpusError
from ..language_pair import LanguagePair, parse_pair
from ..padding import IGNORED, pad_rows, padding_id
from ..seq2seq import encode_source, encode_target
from .templates import TEMPLATES, build_prompt, choose_template

FIELDS = ("source", "target", "language_pair")
"""What a row holds."""


@dataclass
class TranslationCollator:
    """Turns rows into a batch whose loss covers the translation and the end-of-sentence token only.

    Rows are mappings with `source`, `target` and `language_pair`. A batch holds `input_ids`, `attention_mask` and
    `labels`, all int64 (B, T), and `language_pairs`, a list of B pairs. For a decoder-only model a row is prompt and
    translation, padded on the left; for an encoder-decoder, `input_ids` are the source and `labels` the translation,
    of a length of their own, both padded on the right.

    Args:
        tokenizer: Tokenizer of the model; used as it is, never changed.
        templates: Prompt templates; one is drawn for each sentence pair. By default `TEMPLATES`, and for an
            encoder-decoder the way its tokenizer marks languages.
        seed: Seed of the draw. The same row has the same template in every epoch and batch.
        max_length: Tokens of prompt and translation together; longer translations are cut, and a prompt that leaves
            no room for any is an error. In an encoder-decoder, tokens of each, both cut.
        encoder_decoder: Whether the model is an encoder-decoder.

    Raises:
        CorpusError: A row lacks a field, the tokenizer has no end-of-sentence token, or a prompt is too long.
    """

    tokenizer: Any
    templates: Sequence[str] | None = None
    seed: int = 0
    max_length: int = 512
    encoder_decoder: bool = False

    def __post_init__(self) -> None:
        if self.tokenizer.eos_token_id is None:
            raise CorpusError("tokenizer", type(self.tokenizer).__name__, "set its eos_token; training needs an end.")
        if isinstance(self.templates, str) or (self.templates is not None and not self.templates):
            raise CorpusError("templates", self.templates, "give a list of at least one template.")
        if not isinstance(self.max_length, int) or self.max_length < 2:
            raise CorpusError("max_length", self.max_length, "must be an integer, 2 or more.")

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        encoded = [self.encode(row) for row in rows]
        tensors = self._translations(encoded) if self.encoder_decoder else self._continuations(encoded)
        return {**tensors, "language_pairs": [str(row["language_pair"]) for row in rows]}

    def _continuations(self, encoded: list[tuple[list[int], list[int]]]) -> dict[str, torch.Tensor]:
        rows = [prompt + target for prompt, target in encoded]
        input_ids, attention_mask = pad_rows(rows, padding_id(self.tokenizer), "left")
        labels, _ = pad_rows([[IGNORED] * len(prompt) + target for prompt, target in encoded], IGNORED, "left")
        return {"input_ids": input_ids, "attention_mask": attention_mask, "labels": labels}

    def _translations(self, encoded: list[tuple[list[int], list[int]]]) -> dict[str, torch.Tensor]:
        sources, targets = zip(*encoded, strict=True)
        input_ids, attention_mask = pad_rows(sources, padding_id(self.tokenizer))
        labels, _ = pad_rows(targets, IGNORED)
        return {"input_ids": input_ids, "attention_mask": attention_mask, "labels": labels}

    def encode(self, row: Mapping[str, Any]) -> tuple[list[int], list[int]]:
        """Return the token ids of a row's prompt, or of its source, and of its translation with the end-of-sentence
        token."""
        missing = [name for name in FIELDS if not row.get(name)]
        if missing:
            raise CorpusError("row", dict(row), f"lacks {', '.join(missing)}; rows hold {', '.join(FIELDS)}.")
        pair = parse_pair(row["language_pair"])
        if self.encoder_decoder:
            template = self._template(row, pair, self.templates) if self.templates is not None else None
            source = encode_source(self.tokenizer, row["source"], pair, self.max_length, template)
            return source, encode_target(self.tokenizer, row["target"], pair, self.max_length)
        prompt = self._prompt(row, pair)
        target = self.tokenizer(" " + row["target"], add_special_tokens=False)["input_ids"]
        room = self.max_length - len(prompt)
        if room < 2:
            raise CorpusError(
                "max_length",
                self.max_length,
                f"the prompt of {row['source'][:40]!r} alone has {len(prompt)} tokens; raise max_length, or leave out "
                "the rows that do not fit().",
            )
        return prompt, [*target[: room - 1], self.tokenizer.eos_token_id]

    def fits(self, row: Mapping[str, Any]) -> bool:
        """Tell whether `max_length` leaves room for a translation; always, in an encoder-decoder."""
        pair = parse_pair(row["language_pair"])
        return self.encoder_decoder or len(self._prompt(row, pair)) <= self.max_length - 2

    def _prompt(self, row: Mapping[str, Any], pair: LanguagePair) -> list[int]:
        template = self._template(row, pair, TEMPLATES if self.templates is None else self.templates)
        return self.tokenizer(build_prompt(row["source"], str(pair), template))["input_ids"]

    def _template(self, row: Mapping[str, Any], pair: LanguagePair, templates: Sequence[str]) -> str:
        drawn = zlib.crc32(f"{pair}\n{row['source']}\n{row['target']}".encode())
        return choose_template(drawn, self.seed, templates)
