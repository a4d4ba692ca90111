"""A row's loss, gradient and translation do not depend on the rows that share its batch, on any base."""

from __future__ import annotations

import copy
import inspect
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from transformers import PreTrainedModel, PreTrainedTokenizerFast, Trainer, TrainingArguments

from peft_landermt import LanderTrainer, TranslationCollator, detect_neurons
from peft_landermt.padding import end_together
from peft_landermt.translation import translate_counted

from ..conftest import SENTENCES
from .bases import BASES, DECODERS, TWO_STACKS, build, table

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")

ROWS = [
    {"source": "Tea?", "target": "Tee?", "language_pair": "en-de"},
    {"source": "Where is the old station?", "target": "Wo ist der alte Bahnhof?", "language_pair": "en-de"},
    {"source": "Wir trinken jeden Tag Tee.", "target": "We drink tea every day.", "language_pair": "de-en"},
]
CLOSE = {"rtol": 1e-4, "atol": 1e-5}


def arguments(folder: Path, **options: Any) -> TrainingArguments:
    settled = {"use_cpu": True, "report_to": [], "disable_tqdm": True, "save_strategy": "no", "seed": 3}
    return TrainingArguments(str(folder), **{**settled, **options})


def collator_for(name: str, tokenizer: Any) -> TranslationCollator:
    return TranslationCollator(tokenizer, encoder_decoder=name in TWO_STACKS)


def gradients(model: PreTrainedModel, loss: torch.Tensor) -> dict[str, torch.Tensor]:
    model.zero_grad()
    loss.backward()
    return {key: weight.grad.clone() for key, weight in model.named_parameters() if weight.grad is not None}


def summed_loss(model: PreTrainedModel, batch: dict[str, Any]) -> torch.Tensor:
    """The reference: cross-entropy of all labels, from the logits of a plain forward pass."""
    tensors = {key: value for key, value in batch.items() if key != "language_pairs"}
    logits, labels = model(**tensors).logits, batch["labels"]
    if not model.config.is_encoder_decoder:
        logits, labels = logits[:, :-1], labels[:, 1:]
    return F.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="sum")


def added_up(model: PreTrainedModel, collator: TranslationCollator) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Loss and gradient of all rows, each alone, where nothing is padded."""
    losses = [summed_loss(model, collator([row])) for row in ROWS]
    parts = [gradients(model, loss) for loss in losses]
    keys = {key for part in parts for key in part}
    return torch.stack(losses).sum().detach(), {key: sum(part[key] for part in parts) for key in keys}  # type: ignore[misc]


def assert_same(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert found.keys() == expected.keys() and found
    scale = max(float(value.abs().max()) for value in expected.values())
    for key, value in found.items():
        torch.testing.assert_close(value / scale, expected[key] / scale, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("name", table(BASES))
def test_in_a_loop_of_ones_own(name: str, tokenizer: PreTrainedTokenizerFast) -> None:
    model, collator = build(name), collator_for(name, tokenizer)
    expected, expected_gradients = added_up(model, collator)
    loss = summed_loss(model, collator(ROWS))
    torch.testing.assert_close(loss, expected, **CLOSE)
    assert_same(gradients(model, loss), expected_gradients)


@pytest.mark.parametrize(
    ("name", "kind"),
    [*((name, LanderTrainer) for name in BASES), *((name, Trainer) for name in ("GPT-2", "MPT", "T5"))],
)
def test_in_a_trainer(name: str, kind: Any, tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    """The loss of a step is that of all tokens; a plain trainer of transformers takes the same batches."""
    model, collator = build(name), collator_for(name, tokenizer)
    expected, expected_gradients = added_up(model, collator)
    batch = collator(ROWS)
    count = (batch["labels"] != -100).sum()
    trainer = kind(model, arguments(tmp_path), collator, ROWS, processing_class=tokenizer)
    if kind is Trainer:
        del batch["language_pairs"]  # which the base has no use for
    loss = trainer.compute_loss(model, batch, num_items_in_batch=count)
    torch.testing.assert_close(loss, expected / count, **CLOSE)
    assert_same(gradients(model, loss), {key: value / count for key, value in expected_gradients.items()})


@pytest.mark.parametrize("name", table(BASES))
def test_in_evaluation(name: str, tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    model, collator = build(name), collator_for(name, tokenizer)
    with torch.no_grad():
        losses = [(summed_loss(model, collator([row])), len(collator([row])["labels"])) for row in ROWS]
        counts = [int((collator([row])["labels"] != -100).sum()) for row in ROWS]
    expected = {
        "eval_loss": float(sum(loss for loss, _ in losses)) / sum(counts),
        "eval_loss_en-de": float(losses[0][0] + losses[1][0]) / sum(counts[:2]),
        "eval_loss_de-en": float(losses[2][0]) / counts[2],
    }
    for size in (1, 2, 3):
        args = arguments(tmp_path, per_device_eval_batch_size=size)
        found = LanderTrainer(model, args, collator, eval_dataset=ROWS, processing_class=tokenizer).evaluate()
        assert {key: found[key] for key in expected} == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("num_beams", [1, pytest.param(2, marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", table(BASES))
def test_in_translation(name: str, num_beams: int, tokenizer: PreTrainedTokenizerFast) -> None:
    model = build(name)
    sentences, pairs = ([row[key] for row in ROWS] for key in ("source", "language_pair"))
    options = {"max_new_tokens": 6, "num_beams": num_beams}
    alone = [
        translate_counted(model, tokenizer, [sentence], pair, **options).texts[0]
        for sentence, pair in zip(sentences, pairs, strict=True)
    ]
    assert translate_counted(model, tokenizer, sentences, pairs, **options).texts == alone


@pytest.mark.parametrize("name", table(BASES))
def test_in_detection(name: str, tokenizer: PreTrainedTokenizerFast) -> None:
    """Neurons, layers and what they are chosen by, with batches of one sentence and of four."""
    options = {"num_layers": 1, "general_ratio": 0.5, "progress": False}
    maps = [
        detect_neurons(build(name), tokenizer, SENTENCES, ["en-de", "fr-en"], batch_size=size, **options)
        for size in (1, 4)
    ]
    for pair in maps[0].language_pairs:
        changes = [[value or 0.0 for value in found.layer_changes[pair]] for found in maps]
        assert changes[0] == pytest.approx(changes[1], rel=1e-3, abs=1e-6)
    for one, four in zip(*(found.neurons for found in maps), strict=True):
        torch.testing.assert_close(one.awareness, four.awareness, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("name", ["GPT-2", "NLLB, M2M100"])
def test_the_side_of_the_tokenizer_does_not_matter(name: str, side: str, tokenizer: PreTrainedTokenizerFast) -> None:

    own = copy.deepcopy(tokenizer)
    own.padding_side = side
    expected, found = (collator_for(name, one)(ROWS) for one in (tokenizer, own))
    assert all(found[key].equal(expected[key]) for key in ("input_ids", "attention_mask", "labels"))


def test_rows_end_together_by_hand() -> None:
    rows = {
        "input_ids": torch.tensor([[5, 6, 0, 0], [7, 8, 9, 4]]),
        "labels": torch.tensor([[-100, 6, -100, -100]] * 2),
    }
    moved = end_together({**rows, "attention_mask": torch.tensor([[1, 1, 0, 0], [1, 1, 1, 1]])})
    assert moved["input_ids"].tolist() == [[0, 0, 5, 6], [7, 8, 9, 4]]
    assert moved["labels"].tolist() == [[-100, -100, -100, 6], [-100, 6, -100, -100]]
    assert moved["attention_mask"].tolist() == [[0, 0, 1, 1], [1, 1, 1, 1]]
    assert moved["position_ids"].tolist() == [[0, 0, 0, 1], [0, 1, 2, 3]]


@pytest.mark.parametrize("name", table(DECODERS))
def test_labels_stand_in_few_columns(name: str, tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    """Logits are computed for the longest translation, and the position before it."""
    model, collator = build(name), collator_for(name, tokenizer)
    if "logits_to_keep" not in inspect.signature(model.forward).parameters:
        pytest.skip("this transformers computes all logits of this model")
    widths: list[int] = []
    model.get_output_embeddings().register_forward_hook(lambda _m, _a, logits: widths.append(logits.shape[1]))
    LanderTrainer(model, arguments(tmp_path), collator, ROWS, processing_class=tokenizer).compute_loss(
        model, collator(ROWS)
    )
    assert widths == [max(len(row["target"]) for row in ROWS) + 2 + 1]
