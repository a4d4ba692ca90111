"""Batches of translation examples for training."""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import nn

from ..errors import CorpusError
from ..language_pair import LanguagePair, parse_pair
from ..padding import IGNORED, pad_rows, padding_id
from ..prompt import Prompt, encode_continuation, encode_prompt
from ..seq2seq import decoder_inputs, encode_labels, encode_source, is_encoder_decoder, starts_from_code
from .corpus import text_problem
from .models import prompt_of
from .templates import TEMPLATES, choose_template
from .whitespace import one_line, one_space

FIELDS = ("source", "target", "language_pair")
"""What a row holds."""


_ADDED = 80
"""More tokens and bytes than a tokenizer adds to a text, or `encode_source` names languages with."""


class _Encoded(NamedTuple):
    """A row's tokens: prompt, or source; translation; its labels; and whether one of them was cut."""

    source: list[int]
    target: list[int]
    labels: list[int]
    cut: bool


@dataclass
class TranslationCollator:
    """Turns rows into a batch whose loss covers the translation and the token that ends it only.

    Rows are mappings with `source`, `target` and `language_pair`. A batch holds `input_ids`, `attention_mask` and
    `labels`, all int64 (B, T), and `language_pairs`, a list of B pairs. For a decoder-only model a row is prompt and
    translation; for an encoder-decoder, `input_ids` are the source and `labels` the translation, of a length of their
    own, and `decoder_input_ids` are there with `model`, or where a language code begins them. Padding is on the right,
    so that no token's position depends on the other rows.

    A translation is one line, as `translate` gives it: line ends within a text become spaces.

    Args:
        tokenizer: Tokenizer of the model; used as it is, never changed.
        templates: Prompt templates (see [`build_prompt`][peft_landermt.translation.build_prompt]); one is drawn for
            each sentence pair. By default that of the adapter in `model`, else `TEMPLATES`, and for an encoder-decoder
            the way its tokenizer marks languages.
        seed: Seed of the draw. The same row has the same template in every epoch and batch.
        max_length: Tokens of prompt and translation together. Longer translations are cut, and do not teach an end
            then; a prompt that leaves no room for any is an error. In an encoder-decoder, tokens of each, both cut.
        encoder_decoder: Whether the model is an encoder-decoder.
        model: The model, for `encoder_decoder`, for `templates`, and to make the decoder inputs of an encoder-decoder,
            which trainers with a loss or label smoothing of their own need.

    Raises:
        CorpusError: A row lacks a field, a template is none, the tokenizer has no token that ends a translation, or a
            prompt is too long.
    """

    tokenizer: Any
    templates: Sequence[str] | None = None
    seed: int = 0
    max_length: int = 512
    encoder_decoder: bool = False
    model: nn.Module | None = None

    def __post_init__(self) -> None:
        if self.tokenizer.eos_token_id is None:
            raise CorpusError("tokenizer", type(self.tokenizer).__name__, "set its eos_token; training needs an end.")
        if isinstance(self.templates, str) or (self.templates is not None and not self.templates):
            raise CorpusError("templates", self.templates, "give a list of at least one template.")
        if not isinstance(self.max_length, int) or self.max_length < 2:
            raise CorpusError("max_length", self.max_length, "must be an integer, 2 or more.")
        if self.model is not None:
            self.encoder_decoder = is_encoder_decoder(self.model)
            kept = prompt_of(self.model)
            if self.templates is None and kept is not None:
                self.templates = [kept]
        for template in self.templates or ():
            prompt = Prompt.parse(template, "templates")
            if not self.encoder_decoder:
                prompt.end_token(self.tokenizer)

    @property
    def prompt(self) -> str | None:
        """Return the first template, for translation to use; None where an encoder-decoder's tokenizer marks
        languages."""
        if self.templates is not None:
            return self.templates[0]
        return None if self.encoder_decoder else TEMPLATES[0]

    @property
    def ends(self) -> list[str]:
        """Return texts of the tokens that end a translation."""
        prompts = [] if self.encoder_decoder else [Prompt.parse(template) for template in self.templates or TEMPLATES]
        named = (prompt.end for prompt in prompts if prompt.end)
        return list(dict.fromkeys([self.tokenizer.eos_token, *named]))

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        encoded = [self._encode(row) for row in rows]
        tensors = self._translations(encoded, rows) if self.encoder_decoder else self._continuations(encoded)
        return {**tensors, "language_pairs": [str(row["language_pair"]) for row in rows]}

    def _continuations(self, encoded: list[_Encoded]) -> dict[str, torch.Tensor]:
        ids = [row.source + row.target for row in encoded]
        input_ids, attention_mask = pad_rows(ids, padding_id(self.tokenizer))
        labels, _ = pad_rows([[IGNORED] * len(row.source) + row.labels for row in encoded], IGNORED)
        return {"input_ids": input_ids, "attention_mask": attention_mask, "labels": labels}

    def _translations(self, encoded: list[_Encoded], rows: Sequence[Mapping[str, Any]]) -> dict[str, torch.Tensor]:
        pad = padding_id(self.tokenizer)
        input_ids, attention_mask = pad_rows([row.source for row in encoded], pad)
        labels, _ = pad_rows([row.labels for row in encoded], IGNORED)
        batch = {"input_ids": input_ids, "attention_mask": attention_mask, "labels": labels}
        targets = [row.target for row in encoded]
        if self.model is not None:
            batch["decoder_input_ids"] = decoder_inputs(self.model, pad_rows(targets, IGNORED)[0])
        elif starts_from_code(self.tokenizer, parse_pair(rows[0]["language_pair"])):
            # the model would look for the code in the labels, which lack it where a translation was cut
            batch["decoder_input_ids"], _ = pad_rows([[target[-1], *target[:-1]] for target in targets], pad)
        return batch

    def encode(self, row: Mapping[str, Any]) -> tuple[list[int], list[int]]:
        """Encode a row: token ids of its prompt, or of its source, and of its translation with the token that ends
        it.

        A translation that was cut has no end; that of an encoder-decoder has one, without a label.
        """
        encoded = self._encode(row)
        return encoded.source, encoded.target

    def fits(self, row: Mapping[str, Any]) -> bool:
        """Tell whether `max_length` leaves room for a translation; always, in an encoder-decoder."""
        if self.encoder_decoder:
            return True
        text, _ = self._prompt(row, parse_pair(row["language_pair"]))
        return len(encode_prompt(self.tokenizer, text)) <= self.max_length - 2

    def cuts(self, row: Mapping[str, Any]) -> bool:
        """Tell whether a row that fits is longer than `max_length`, so that its translation, or its source, is cut."""
        return self._encode(row).cut

    def is_short(self, row: Mapping[str, Any]) -> bool:
        """Tell whether the row's bytes alone tell that it fits and is not cut: no token is less than a byte."""
        source, target = (len(row[name].encode()) + _ADDED for name in ("source", "target"))
        if self.encoder_decoder and self.templates is None:
            return max(source, target) <= self.max_length
        prompt = len(self._prompt(row, parse_pair(row["language_pair"]))[0].encode())
        return (max(prompt, target) if self.encoder_decoder else prompt + target) <= self.max_length

    def _encode(self, row: Mapping[str, Any]) -> _Encoded:
        pair = check_fields(row)
        return self._encode_translation(row, pair) if self.encoder_decoder else self._encode_continuation(row, pair)

    def _encode_translation(self, row: Mapping[str, Any], pair: LanguagePair) -> _Encoded:
        text = one_space(row["source"])
        template = self._template(row, pair, self.templates) if self.templates is not None else None
        source = encode_source(self.tokenizer, text, pair, template=template)
        cut = len(source) > self.max_length
        if cut:
            source = encode_source(self.tokenizer, text, pair, self.max_length, template)
        target, labels = encode_labels(self.tokenizer, one_line(row["target"]), pair, self.max_length)
        return _Encoded(source, target, labels, cut or labels != target)

    def _encode_continuation(self, row: Mapping[str, Any], pair: LanguagePair) -> _Encoded:
        text, prompt = self._prompt(row, pair)
        source = encode_prompt(self.tokenizer, text)
        room = self.max_length - len(source)
        if room < 2:
            raise CorpusError(
                "max_length",
                self.max_length,
                f"the prompt of {row['source'][:40]!r} alone has {len(source)} tokens; raise max_length, or leave out "
                "the rows that do not fit().",
            )
        target = encode_continuation(self.tokenizer, text, prompt.separator + one_line(row["target"]))
        cut = len(target) >= room
        target = target[:room] if cut else [*target, prompt.end_token(self.tokenizer)]
        return _Encoded(source, target, target, cut)

    def _prompt(self, row: Mapping[str, Any], pair: LanguagePair) -> tuple[str, Prompt]:
        """Return the text of a row's prompt, and the template that it comes from."""
        template = self._template(row, pair, TEMPLATES if self.templates is None else self.templates)
        prompt = Prompt.parse(template)
        return prompt.fill(one_space(row["source"]), pair), prompt

    def _template(self, row: Mapping[str, Any], pair: LanguagePair, templates: Sequence[str]) -> str:
        drawn = zlib.crc32(f"{pair}\n{row['source']}\n{row['target']}".encode())
        return choose_template(drawn, self.seed, templates)


def check_fields(row: Mapping[str, Any]) -> LanguagePair:
    """Return the language pair of a row that holds what rows hold.

    Raises:
        CorpusError: It lacks a field, or that has no text, or what is none: NUL characters, half of a surrogate pair.
        LanguagePairError: Its pair is malformed.
    """
    missing = [name for name in FIELDS if not isinstance(row.get(name), str) or not row[name].strip()]
    if missing:
        raise CorpusError("row", dict(row), f"lacks {', '.join(missing)}; rows hold {', '.join(FIELDS)}.")
    problem = text_problem(row["source"], row["target"])
    if problem is not None:
        raise CorpusError("row", dict(row), f"{problem}; leave it out.")
    return parse_pair(row["language_pair"])
