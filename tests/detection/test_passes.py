"""Batches of calibration text."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from peft_landermt.detection.passes import make_batches
from peft_landermt.errors import CorpusError

CPU = torch.device("cpu")


def _tokens(batch: Any) -> list[list[int]]:
    return [ids[mask.bool()].tolist() for ids, mask in zip(batch.input_ids, batch.attention_mask, strict=True)]


def test_shortest_first_right_padded_and_every_text_once(tokenizer: Any) -> None:
    # <bos> and one token per character: lengths 5, 3, 4, 3; the two of length 3 keep their order
    texts = ["abcd", "ab", "abc", "cd"]
    first, second = make_batches(tokenizer, texts, 3, 16, CPU)
    ids = {text: tokenizer(text)["input_ids"] for text in texts}
    assert _tokens(first) == [ids["ab"], ids["cd"], ids["abc"]]
    assert _tokens(second) == [ids["abcd"]]
    assert first.attention_mask.tolist() == [[1, 1, 1, 0], [1, 1, 1, 0], [1, 1, 1, 1]]
    assert first.input_ids[0, 3] == tokenizer.pad_token_id
    assert first.input_ids.dtype == first.attention_mask.dtype == torch.int64


def test_cut_at_max_length(tokenizer: Any) -> None:
    (batch,) = make_batches(tokenizer, ["abcd", "a"], 8, 3, CPU)
    assert _tokens(batch) == [tokenizer("a")["input_ids"], tokenizer("ab")["input_ids"]]


@pytest.mark.parametrize("ids", [[], [7]])
def test_nothing_to_predict(ids: list[int]) -> None:
    def tokenizer(_text: str) -> dict[str, list[int]]:
        return {"input_ids": ids}

    with pytest.raises(CorpusError, match=r"sentences='Hm\.': .*fewer than two tokens"):
        make_batches(tokenizer, ["Hm."], 1, 16, CPU)


def test_a_text_of_padding_tokens_is_not_padding() -> None:
    """The mask comes from lengths, not from the padding id, which often is the id of <eos>."""

    class Tokenizer(SimpleNamespace):
        pad_token_id = 2

        def __call__(self, text: str) -> dict[str, list[int]]:
            return {"input_ids": [int(digit) for digit in text]}

    (batch,) = make_batches(Tokenizer(), ["1342", "22"], 2, 16, CPU)
    assert batch.attention_mask.tolist() == [[1, 1, 0, 0], [1, 1, 1, 1]]
