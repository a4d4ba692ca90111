"""Calibration sentences as batches of token ids.

A decoder-only model reads the sentences of one language, and for layer selection the prompts of a pair. An
encoder-decoder reads translations: its encoder the source sentence, its decoder the target sentence. Since sentences
are parallel, each is source once and target once; its partner's language changes from sentence to sentence.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from ..errors import CorpusError
from ..language_pair import TRANSLATION_PROMPT, LanguagePair, format_prompt
from ..linear import device_and_dtype
from ..padding import IGNORED, pad_rows, padding_id
from ..prompt import encode_prompt
from ..seq2seq import decoder_inputs, encode_labels, encode_source, is_encoder_decoder


@dataclass(frozen=True)
class Batch:
    """One pass of B rows, right-padded, int64.

    Attributes:
        inputs: Arguments of the model's forward.
        masks: For `decoder` and, where there is one, `encoder`: (B, T), 1 for tokens, 0 for padding.
        labels: (B, T); what the decoder's output at each position predicts, or `IGNORED`.
        languages: For the same stacks, the language of their tokens.
    """

    inputs: Mapping[str, torch.Tensor]
    masks: Mapping[str, torch.Tensor]
    labels: torch.Tensor
    languages: Mapping[str, str]

    @property
    def num_predicted(self) -> int:
        """Number of tokens that the loss covers."""
        return int((self.labels != IGNORED).sum())


@dataclass(frozen=True)
class Batcher:
    """Makes batches for one model and its tokenizer, which is left as it is.

    Args:
        model: The model.
        tokenizer: Its tokenizer.
        batch_size: Rows per batch; rows of similar length come together.
        max_length: Tokens after which a text is cut.
    """

    model: nn.Module
    tokenizer: Any
    batch_size: int
    max_length: int

    def of_sentences(self, texts: Mapping[str, Sequence[str]]) -> list[Batch]:
        """Make batches of every sentence of every language once in each stack."""
        if is_encoder_decoder(self.model):
            return [
                batch
                for pair, chosen in rotated_pairs(list(texts), len(next(iter(texts.values()))))
                for batch in self._of_translations(
                    pair, *([texts[language][index] for index in chosen] for language in pair)
                )
            ]
        return [batch for language in texts for batch in self._of_texts(texts[language], language)]

    def of_pair(self, texts: Mapping[str, Sequence[str]], pair: LanguagePair) -> list[Batch]:
        """Tell what the model reads when it translates the sentences of a pair."""
        if is_encoder_decoder(self.model):
            return self._of_translations(pair, texts[pair.source], texts[pair.target])
        prompts = [format_prompt(TRANSLATION_PROMPT, text, pair) for text in texts[pair.source]]
        return self._of_tokens([encode_prompt(self.tokenizer, prompt) for prompt in prompts], pair.source)

    def _of_texts(self, texts: Sequence[str], language: str) -> list[Batch]:
        encoded = [self.tokenizer(text)["input_ids"] for text in texts]
        for text, ids in zip(texts, encoded, strict=True):
            if len(ids) < 2:
                raise CorpusError("sentences", text, "has fewer than two tokens; leave it out in every language.")
        return self._of_tokens(encoded, language)

    def _of_tokens(self, rows: Sequence[list[int]], language: str) -> list[Batch]:
        encoded = [row[: self.max_length] for row in rows]
        batches = []
        for chosen in self._by_length(encoded):
            ids, mask = self._padded([encoded[index] for index in chosen])
            labels = F.pad(ids.masked_fill(mask == 0, IGNORED)[:, 1:], (0, 1), value=IGNORED)
            inputs = {"input_ids": ids, "attention_mask": mask}
            batches.append(Batch(inputs, {"decoder": mask}, labels, {"decoder": language}))
        return batches

    def _of_translations(self, pair: LanguagePair, sources: Sequence[str], targets: Sequence[str]) -> list[Batch]:
        encoded = [encode_source(self.tokenizer, text, pair, self.max_length) for text in sources]
        expected = [encode_labels(self.tokenizer, text, pair, self.max_length) for text in targets]
        batches = []
        for chosen in self._by_length(encoded):
            ids, mask = self._padded([encoded[index] for index in chosen])
            target, target_mask = self._padded([expected[index][0] for index in chosen])
            labels = self._padded([expected[index][1] for index in chosen])[0].masked_fill(target_mask == 0, IGNORED)
            inputs = {
                "input_ids": ids,
                "attention_mask": mask,
                "decoder_input_ids": decoder_inputs(self.model, target.masked_fill(target_mask == 0, IGNORED)),
            }
            masks = {"encoder": mask, "decoder": target_mask}
            batches.append(Batch(inputs, masks, labels, {"encoder": pair.source, "decoder": pair.target}))
        return batches

    def _by_length(self, encoded: list[list[int]]) -> Iterator[list[int]]:
        order = sorted(range(len(encoded)), key=lambda index: (len(encoded[index]), index))
        for start in range(0, len(order), self.batch_size):
            yield order[start : start + self.batch_size]

    def _padded(self, encoded: list[list[int]]) -> tuple[torch.Tensor, torch.Tensor]:
        ids, mask = pad_rows(encoded, padding_id(self.tokenizer))
        device, _ = device_and_dtype(self.model.get_input_embeddings())  # type: ignore[operator]
        return ids.to(device), mask.to(device)


def rotated_pairs(languages: Sequence[str], num_sentences: int) -> list[tuple[LanguagePair, list[int]]]:
    """List pairs and the sentences they translate, such that every sentence n of every language is source in one pair
    and target in one: language i goes with language i + 1 + (n mod (L - 1)), counted around."""
    count = len(languages)
    return [
        (
            LanguagePair(source, languages[(index + 1 + step) % count]),
            [n for n in range(num_sentences) if n % (count - 1) == step],
        )
        for index, source in enumerate(languages)
        for step in range(min(count - 1, num_sentences))
    ]
