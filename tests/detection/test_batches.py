"""Batches of calibration text."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from peft_landermt.detection.batches import Batch, Batcher, rotated_pairs
from peft_landermt.errors import CorpusError
from peft_landermt.language_pair import LanguagePair

from ..conftest import build_model


def make_batches(tokenizer: Any, texts: list[str], batch_size: int, max_length: int) -> list[Batch]:
    return Batcher(build_model("llama"), tokenizer, batch_size, max_length).of_sentences({"en": texts})


def _tokens(batch: Batch) -> list[list[int]]:
    ids, masks = batch.inputs["input_ids"], batch.inputs["attention_mask"]
    return [row[mask.bool()].tolist() for row, mask in zip(ids, masks, strict=True)]


def test_shortest_first_right_padded_and_every_text_once(tokenizer: Any) -> None:
    # <bos> and one token per character: lengths 5, 3, 4, 3; the two of length 3 keep their order
    texts = ["abcd", "ab", "abc", "cd"]
    first, second = make_batches(tokenizer, texts, 3, 16)
    ids = {text: tokenizer(text)["input_ids"] for text in texts}
    assert _tokens(first) == [ids["ab"], ids["cd"], ids["abc"]]
    assert _tokens(second) == [ids["abcd"]]
    assert first.inputs["attention_mask"].tolist() == [[1, 1, 1, 0], [1, 1, 1, 0], [1, 1, 1, 1]]
    assert first.inputs["input_ids"][0, 3] == tokenizer.pad_token_id
    assert first.labels.dtype == first.masks["decoder"].dtype == torch.int64


def test_cut_at_max_length(tokenizer: Any) -> None:
    (batch,) = make_batches(tokenizer, ["abcd", "a"], 8, 3)
    assert _tokens(batch) == [tokenizer("a")["input_ids"], tokenizer("ab")["input_ids"]]


@pytest.mark.parametrize("ids", [[], [7]])
def test_nothing_to_predict(ids: list[int]) -> None:
    def tokenizer(_text: str) -> dict[str, list[int]]:
        return {"input_ids": ids}

    with pytest.raises(CorpusError, match=r"sentences='Hm\.': .*fewer than two tokens"):
        make_batches(tokenizer, ["Hm."], 1, 16)


def test_a_text_of_padding_tokens_is_not_padding() -> None:
    """The mask comes from lengths, not from the padding id, which often is the id of <eos>."""

    class Tokenizer(SimpleNamespace):
        pad_token_id = 2

        def __call__(self, text: str) -> dict[str, list[int]]:
            return {"input_ids": [int(digit) for digit in text]}

    (batch,) = make_batches(Tokenizer(), ["1342", "22"], 2, 16)
    assert batch.masks["decoder"].tolist() == [[1, 1, 0, 0], [1, 1, 1, 1]]


@pytest.mark.parametrize("num_languages", [2, 3, 6])
@pytest.mark.parametrize("num_sentences", [1, 4, 7])
def test_every_sentence_is_source_once_and_target_once(num_languages: int, num_sentences: int) -> None:
    languages = ["en", "de", "fr", "it", "ar", "zh"][:num_languages]
    pairs = rotated_pairs(languages, num_sentences)
    every = sorted((language, n) for language in languages for n in range(num_sentences))
    assert sorted((pair.source, n) for pair, chosen in pairs for n in chosen) == every
    assert sorted((pair.target, n) for pair, chosen in pairs for n in chosen) == every
    assert all(pair.source != pair.target for pair, _ in pairs)


def test_rotated_pairs_by_hand() -> None:
    """Three languages, three sentences: sentences 0 and 2 go to the next language, sentence 1 to the one after."""
    assert rotated_pairs(["en", "de", "fr"], 3) == [
        (LanguagePair("en", "de"), [0, 2]),
        (LanguagePair("en", "fr"), [1]),
        (LanguagePair("de", "fr"), [0, 2]),
        (LanguagePair("de", "en"), [1]),
        (LanguagePair("fr", "en"), [0, 2]),
        (LanguagePair("fr", "de"), [1]),
    ]
