"""Batches of translation examples for training."""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from ..errors import CorpusError
from ..language_pair import parse_pair
from .templates import TEMPLATES, build_prompt, choose_template

IGNORED = -100
"""Label of positions that the loss leaves out."""


@dataclass
class TranslationCollator:
    """Turns rows into a left-padded batch whose loss covers the translation and the end-of-sentence token only.

    Rows are mappings with `source`, `target` and `language_pair`. A batch holds `input_ids`, `attention_mask` and
    `labels`, all int64 (B, T), and `language_pairs`, a list of B pairs.

    Args:
        tokenizer: Tokenizer of the model; used as it is, never changed.
        templates: Prompt templates; one is drawn for each sentence pair.
        seed: Seed of the draw. The same row has the same template in every epoch and batch.
        max_length: Tokens of prompt and translation together; longer translations are cut, and a prompt that leaves
            no room for any is an error.

    Raises:
        CorpusError: A row lacks a field, the tokenizer has no end-of-sentence token, or a prompt is too long.
    """

    tokenizer: Any
    templates: Sequence[str] = TEMPLATES
    seed: int = 0
    max_length: int = 512

    def __post_init__(self) -> None:
        if self.tokenizer.eos_token_id is None:
            raise CorpusError("tokenizer", type(self.tokenizer).__name__, "set its eos_token; training needs an end.")
        if isinstance(self.templates, str) or not self.templates:
            raise CorpusError("templates", self.templates, "give a list of at least one template.")

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        encoded = [self.encode(row) for row in rows]
        length = max(len(prompt) + len(target) for prompt, target in encoded)
        pad = self.tokenizer.pad_token_id if self.tokenizer.pad_token_id is not None else self.tokenizer.eos_token_id
        input_ids = torch.full((len(rows), length), pad)
        attention_mask = torch.zeros_like(input_ids)
        labels = torch.full_like(input_ids, IGNORED)
        for index, (prompt, target) in enumerate(encoded):
            input_ids[index, length - len(prompt) - len(target) :] = torch.tensor(prompt + target)
            attention_mask[index, length - len(prompt) - len(target) :] = 1
            labels[index, length - len(target) :] = torch.tensor(target)
        return {
            "input_ids": input_ids,
            "attention_mask": attention_mask,
            "labels": labels,
            "language_pairs": [str(row["language_pair"]) for row in rows],
        }

    def encode(self, row: Mapping[str, Any]) -> tuple[list[int], list[int]]:
        """Token ids of a row's prompt and of its translation with the end-of-sentence token."""
        missing = [name for name in ("source", "target", "language_pair") if not row.get(name)]
        if missing:
            raise CorpusError(
                "row", dict(row), f"lacks {', '.join(missing)}; rows hold source, target, language_pair."
            )
        pair = parse_pair(row["language_pair"])
        drawn = zlib.crc32(f"{pair}\n{row['source']}\n{row['target']}".encode())
        template = choose_template(drawn, self.seed, self.templates)
        prompt = self.tokenizer(build_prompt(row["source"], str(pair), template))["input_ids"]
        target = self.tokenizer(" " + row["target"], add_special_tokens=False)["input_ids"]
        room = self.max_length - len(prompt)
        if room < 2:
            raise CorpusError(
                "max_length", self.max_length, f"a prompt alone has {len(prompt)} tokens; clean the corpus."
            )
        return prompt, [*target[: room - 1], self.tokenizer.eos_token_id]
