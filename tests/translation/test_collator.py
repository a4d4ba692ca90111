"""The collator: what is labelled, how rows are padded, and which template a row gets."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from transformers import PreTrainedTokenizerFast

from peft_landermt import TranslationCollator
from peft_landermt.errors import CorpusError, LanguagePairError
from peft_landermt.translation import TEMPLATES

from ..conftest import PAIRS, SENTENCES

ROWS = [
    {"source": source, "target": target, "language_pair": pair}
    for pair in PAIRS
    for source, target in zip(*(SENTENCES[code] for code in pair.split("-")), strict=True)
]
ONE = ["{source_language} {target_language} {source}:"]
BOS, EOS, PAD = 1, 2, 0


def text_ids(tokenizer: Any, text: str) -> list[int]:
    """One id per character, by the vocabulary alone."""
    return [tokenizer.convert_tokens_to_ids(character) for character in text]


def test_labels_are_the_target_and_eos_only(tokenizer: PreTrainedTokenizerFast) -> None:
    batch = TranslationCollator(tokenizer, templates=ONE)([ROWS[0]])
    # written out by hand: ROWS[0] is en-de, and one space stands between prompt and translation
    prompt = [BOS, *text_ids(tokenizer, "English German The house is old.:")]
    target = [*text_ids(tokenizer, " Das Haus ist alt."), EOS]
    assert batch["input_ids"].tolist() == [prompt + target]
    assert batch["labels"].tolist() == [[-100] * len(prompt) + target]
    assert batch["attention_mask"].tolist() == [[1] * len(prompt + target)]
    assert batch["language_pairs"] == ["en-de"]


def test_rows_are_padded_on_the_right(tokenizer: PreTrainedTokenizerFast) -> None:
    collator = TranslationCollator(tokenizer)
    batch = collator(ROWS)
    lengths = [sum(map(len, collator.encode(row))) for row in ROWS]
    assert len(set(lengths)) > 3
    assert batch["language_pairs"] == [row["language_pair"] for row in ROWS]
    for name in ("input_ids", "attention_mask", "labels"):
        assert batch[name].dtype == torch.int64
        assert batch[name].shape == (len(ROWS), max(lengths))
    for index, (row, length) in enumerate(zip(ROWS, lengths, strict=True)):
        prompt, target = collator.encode(row)
        padding = max(lengths) - length
        assert batch["input_ids"][index].tolist() == prompt + target + [PAD] * padding
        assert batch["attention_mask"][index].tolist() == [1] * length + [0] * padding
        assert batch["labels"][index].tolist() == [-100] * len(prompt) + target + [-100] * padding
        assert target == [*text_ids(tokenizer, " " + row["target"]), EOS]


def test_eos_pads_where_there_is_no_pad_token(tokenizer: PreTrainedTokenizerFast) -> None:
    padless = copy.deepcopy(tokenizer)
    padless.pad_token = None
    rows = [ROWS[0], ROWS[3]]
    expected = TranslationCollator(tokenizer, templates=ONE)(rows)
    batch = TranslationCollator(padless, templates=ONE)(rows)
    padding = expected["attention_mask"] == 0
    assert padding.any()
    assert (batch["input_ids"][padding] == EOS).all()
    assert (batch["labels"][padding] == -100).all()
    assert batch["input_ids"][~padding].equal(expected["input_ids"][~padding])
    assert batch["attention_mask"].equal(expected["attention_mask"])


def test_template_of_a_row_is_stable_across_batches_and_objects(tokenizer: PreTrainedTokenizerFast) -> None:
    first, again = (TranslationCollator(tokenizer, seed=3) for _ in range(2))
    alone = [first.encode(row) for row in ROWS]
    assert [again.encode(row) for row in reversed(ROWS)] == alone[::-1]
    for batch in (first(ROWS), again(ROWS)):
        real = [
            ids[mask.bool()].tolist() for ids, mask in zip(batch["input_ids"], batch["attention_mask"], strict=True)
        ]
        assert real == [prompt + target for prompt, target in alone]


def test_templates_vary_by_row_and_seed(tokenizer: PreTrainedTokenizerFast) -> None:
    markers = [f"{index} {{source}}" for index in range(10)]
    drawn = {
        seed: [tokenizer.decode(TranslationCollator(tokenizer, markers, seed).encode(row)[0][1]) for row in ROWS]
        for seed in (0, 1)
    }
    # 12 rows and 10 templates; fewer than 4 different ones by chance: below 1e-4
    assert all(len(set(templates)) >= 4 for templates in drawn.values())
    assert drawn[0] != drawn[1]


def test_all_templates_are_drawn(tokenizer: PreTrainedTokenizerFast) -> None:
    markers = "abcdefghij"
    assert len(markers) == len(TEMPLATES)
    collator = TranslationCollator(tokenizer, [f"{marker}{{source}}" for marker in markers])
    rows = [{"source": str(number), "target": "x", "language_pair": "en-de"} for number in range(500)]
    drawn = [tokenizer.decode([collator.encode(row)[0][1]]) for row in rows]
    # 50 expected of each; binomial(500, 0.1) has standard deviation 6.7
    assert all(20 <= drawn.count(marker) <= 80 for marker in markers)


def test_the_same_sentence_may_get_another_template_in_another_pair(tokenizer: PreTrainedTokenizerFast) -> None:
    collator = TranslationCollator(tokenizer, [f"{index} {{source}}" for index in range(10)])
    pairs = ["en-de", "en-fr", "en-it", "en-es", "de-en", "fr-en", "it-en", "es-en"]
    rows = [{"source": "a", "target": "b", "language_pair": pair} for pair in pairs]
    assert len({tokenizer.decode(collator.encode(row)[0][1]) for row in rows}) > 1


@pytest.mark.parametrize("room", [2, 5, 18])
def test_long_translations_are_cut_and_do_not_end(tokenizer: PreTrainedTokenizerFast, room: int) -> None:
    prompt, target = TranslationCollator(tokenizer, ONE).encode(ROWS[0])
    assert len(target) == 19  # 18 characters of " Das Haus ist alt." and eos
    collator = TranslationCollator(tokenizer, ONE, max_length=len(prompt) + room)
    assert collator.encode(ROWS[0]) == (prompt, target[:room])
    assert collator.cuts(ROWS[0]) and not TranslationCollator(tokenizer, ONE).cuts(ROWS[0])
    assert collator([ROWS[0]])["input_ids"].shape == (1, len(prompt) + room)


def test_a_translation_that_just_fits_is_whole(tokenizer: PreTrainedTokenizerFast) -> None:
    whole = TranslationCollator(tokenizer, ONE).encode(ROWS[0])
    assert TranslationCollator(tokenizer, ONE, max_length=sum(map(len, whole))).encode(ROWS[0]) == whole


@pytest.mark.parametrize("room", [-5, 0, 1])
def test_prompt_too_long(tokenizer: PreTrainedTokenizerFast, room: int) -> None:
    prompt, _ = TranslationCollator(tokenizer, ONE).encode(ROWS[0])
    collator = TranslationCollator(tokenizer, ONE, max_length=len(prompt) + room)
    message = f"max_length={len(prompt) + room}: the prompt of .* alone has {len(prompt)} tokens; raise max_length"
    with pytest.raises(CorpusError, match=message):
        collator(ROWS)
    assert not collator.fits(ROWS[0])


def test_rows_that_fit(tokenizer: PreTrainedTokenizerFast) -> None:
    """One token of the translation, and its end."""
    prompt, _ = TranslationCollator(tokenizer, ONE).encode(ROWS[0])
    collator = TranslationCollator(tokenizer, ONE, max_length=len(prompt) + 2)
    assert collator.fits(ROWS[0])
    assert len(collator.encode(ROWS[0])[1]) == 2
    assert TranslationCollator(tokenizer, ONE, max_length=2, encoder_decoder=True).fits(ROWS[0]), "sources are cut"


@pytest.mark.parametrize("max_length", [-5, 0, 1, 2.5, None])
def test_max_length(tokenizer: PreTrainedTokenizerFast, max_length: Any) -> None:
    with pytest.raises(CorpusError, match=f"max_length={max_length}.*2 or more"):
        TranslationCollator(tokenizer, max_length=max_length)


@pytest.mark.parametrize("name", ["source", "target", "language_pair"])
@pytest.mark.parametrize("how", ["missing", "None", "empty"])
def test_missing_fields(tokenizer: PreTrainedTokenizerFast, name: str, how: str) -> None:
    row: dict[str, Any] = {**ROWS[0], name: None if how == "None" else ""}
    if how == "missing":
        del row[name]
    with pytest.raises(CorpusError, match=f"lacks {name}; rows hold source, target, language_pair"):
        TranslationCollator(tokenizer)([ROWS[0], row])


def test_malformed_pair(tokenizer: PreTrainedTokenizerFast) -> None:
    with pytest.raises(LanguagePairError, match="english-german"):
        TranslationCollator(tokenizer)([{**ROWS[0], "language_pair": "english-german"}])


def test_tokenizer_without_eos(tokenizer: PreTrainedTokenizerFast) -> None:
    endless = copy.deepcopy(tokenizer)
    endless.eos_token = None
    with pytest.raises(CorpusError, match="set its eos_token"):
        TranslationCollator(endless)


@pytest.mark.parametrize("templates", ["{source}", [], ()], ids=str)
def test_templates_must_be_a_list(tokenizer: PreTrainedTokenizerFast, templates: Any) -> None:
    with pytest.raises(CorpusError, match="at least one template"):
        TranslationCollator(tokenizer, templates)


@pytest.mark.parametrize("side", ["left", "right"])
def test_tokenizer_is_left_as_it_is(tokenizer: PreTrainedTokenizerFast, side: str) -> None:
    own = copy.deepcopy(tokenizer)
    own.padding_side = side
    before, backend = repr(own), own.backend_tokenizer.to_str()
    batch = TranslationCollator(own)(ROWS)
    assert (repr(own), own.backend_tokenizer.to_str()) == (before, backend)
    assert batch["input_ids"].equal(TranslationCollator(tokenizer)(ROWS)["input_ids"])
