"""The same rows make the same step, in however many batches and processes.

The reference is written out here: cross-entropy summed over all labels of all rows, from the logits of one plain
forward pass, divided by their number.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from transformers import (
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Seq2SeqTrainer,
    Seq2SeqTrainingArguments,
    Trainer,
    TrainingArguments,
)

from peft_landermt import LanderTrainer, TranslationCollator
from peft_landermt.translation import TranslationLoss

from ..cli.test_launch import run_in_processes
from ..conftest import make_tokenizer
from ..versions import IN_ORDER, TRANSFORMERS_4
from .bases import TWO_STACKS, build

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")

ROWS = [
    {"source": "Tea?", "target": "Tee?", "language_pair": "en-de"},
    {"source": "Where is it?", "target": "Wo ist der alte Bahnhof denn nun?", "language_pair": "en-de"},
    {"source": "Wir trinken jeden Tag Tee.", "target": "We do.", "language_pair": "de-en"},
    {"source": "It rained all night.", "target": "Es regnete die ganze Nacht.", "language_pair": "en-de"},
]
BASES = (*TWO_STACKS, "Llama (EuroLLM, Tower, SmolLM)", "GPT-2", "BLOOM", "MPT", "XGLM")


def reference(model: PreTrainedModel, batch: dict[str, Any], smoothing: float) -> tuple[float, float]:
    """Loss and norm of its gradient."""
    model.zero_grad()
    labels = batch["labels"]
    logits = model(**{key: value for key, value in batch.items() if key != "language_pairs"}).logits
    if not model.config.is_encoder_decoder:
        logits, labels = logits[:, :-1], labels[:, 1:]
    # label smoothing as PyTorch and transformers define it: a share of every label for all tokens alike
    logs, known = logits.log_softmax(-1)[labels != -100], labels[labels != -100]
    loss = -(1 - smoothing) * logs.gather(1, known[:, None]).mean() - smoothing * logs.mean()
    loss.backward()
    norm = torch.stack([weight.grad.norm() for weight in model.parameters() if weight.grad is not None]).norm()
    model.zero_grad()
    return float(loss.detach()), float(norm)


def make(kind: type, name: str, tokenizer: Any, folder: Path, smoothing: float, **options: Any) -> Any:
    model = build(name)
    settled: dict[str, Any] = {
        **{
            "use_cpu": True,
            "report_to": [],
            "disable_tqdm": True,
            "save_strategy": "no",
            "remove_unused_columns": False,
        },
        **{"max_steps": 1, "logging_steps": 1, "max_grad_norm": 1e9, "optim": "sgd"},
        **IN_ORDER,
    }
    own = {"label_smoothing_factor": smoothing} if kind is LanderTrainer or smoothing == 0 else {}
    arguments = Seq2SeqTrainingArguments if kind is Seq2SeqTrainer else TrainingArguments
    two_stacks = model.config.is_encoder_decoder
    collator = TranslationCollator(tokenizer, encoder_decoder=two_stacks)
    rest: dict[str, Any] = {}
    if kind is not LanderTrainer:  # what the docs say for other trainers
        ours = TranslationCollator(tokenizer, model=model)
        collator = lambda rows: {key: value for key, value in ours(rows).items() if key != "language_pairs"}  # noqa: E731
        rest = {"compute_loss_func": TranslationLoss(two_stacks, smoothing)}
    return kind(
        model=model,
        args=arguments(str(folder), **{**settled, **own, **options}),
        data_collator=collator,
        train_dataset=ROWS,
        processing_class=tokenizer,
        **rest,
    )


ALWAYS = {
    *((name, LanderTrainer, 0.0) for name in ("NLLB, M2M100", "mBART", "Marian", "T5", "GPT-2")),
    *(("NLLB, M2M100", LanderTrainer, 0.1), ("T5", Trainer, 0.0), ("mBART", Seq2SeqTrainer, 0.1)),
}
EVERY = [
    *((name, kind, smoothing) for kind in (LanderTrainer, Trainer) for name in BASES for smoothing in (0.0, 0.1)),
    *((name, Seq2SeqTrainer, smoothing) for name in TWO_STACKS for smoothing in (0.0, 0.1)),
]


@pytest.mark.parametrize(
    ("name", "kind", "smoothing"),
    [pytest.param(*case, marks=() if case in ALWAYS else pytest.mark.slow) for case in EVERY],
)
def test_the_step_of_one_batch(
    name: str, kind: type, smoothing: float, tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    two_stacks = name in TWO_STACKS
    model = build(name)
    batch = TranslationCollator(tokenizer, encoder_decoder=two_stacks)(ROWS)
    loss, norm = reference(model.train(), batch, smoothing)
    for steps in (1, 4):
        sizes = {"per_device_train_batch_size": 4 // steps, "gradient_accumulation_steps": steps}
        trainer = make(kind, name, tokenizer, tmp_path, smoothing, **sizes)
        if two_stacks and getattr(trainer, "_loss_shifts_labels", False):
            pytest.skip("this transformers' own trainer counts a token too few for every row of an encoder-decoder")
        trainer.train()
        log = trainer.state.log_history[0]
        assert log["loss"] == pytest.approx(loss, rel=1e-4), f"{steps} steps"
        assert log["grad_norm"] == pytest.approx(norm, rel=1e-3), f"{steps} steps"


@pytest.mark.parametrize("name", ["GPT-2", "BLOOM"])
def test_decoders_need_no_loss_of_ours(name: str, tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    """transformers' own trainer, with nothing but the collator."""
    loss, norm = reference(build(name).train(), TranslationCollator(tokenizer)(ROWS), 0.0)
    trainer = make(
        Trainer, name, tokenizer, tmp_path, 0.0, per_device_train_batch_size=1, gradient_accumulation_steps=4
    )
    trainer.compute_loss_func = None
    trainer.train()
    log = trainer.state.log_history[0]
    assert (log["loss"], log["grad_norm"]) == (pytest.approx(loss, rel=1e-4), pytest.approx(norm, rel=1e-3))


def test_on_several_gpus_of_one_process() -> None:
    """transformers hands the count to each: once for every GPU."""
    outputs, labels = type("Outputs", (), {"logits": torch.randn(2, 3, 5)}), torch.tensor([[1, 2, -100], [3, 4, 0]])
    loss = TranslationLoss(encoder_decoder=True)
    expected = F.cross_entropy(outputs.logits.flatten(0, 1), labels.flatten(), reduction="sum")
    torch.testing.assert_close(loss(outputs, labels, torch.tensor(10)), expected / 10)
    torch.testing.assert_close(loss(outputs, labels), expected / 5)
    # num_items_in_batch.unsqueeze(0).expand(n_gpu, -1), and the trainer then multiplies by n_gpu
    torch.testing.assert_close(loss(outputs, labels, torch.tensor([[10], [10]])) * 2, expected / 10)


@pytest.mark.skipif(TRANSFORMERS_4, reason="transformers 4 always shuffles training rows")
@pytest.mark.parametrize("name", ["NLLB, M2M100", "T5", "GPT-2"])
def test_rows_of_unlike_length_weigh_by_their_tokens(
    name: str, tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    """The mean over batches of one row each is another number than the mean over tokens."""
    model, collator = build(name), TranslationCollator(tokenizer, encoder_decoder=name in TWO_STACKS)
    whole, _ = reference(model, collator(ROWS), 0.0)
    means = [reference(model, collator([row]), 0.0)[0] for row in ROWS]
    assert abs(sum(means) / len(means) - whole) > 1e-3
    trainer = make(LanderTrainer, name, tokenizer, tmp_path, 0.0, per_device_train_batch_size=1, max_steps=-1,
                   num_train_epochs=1, gradient_accumulation_steps=3)  # fmt: skip
    trainer.train()
    logged = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert logged[0] == pytest.approx(reference(build(name).train(), collator(ROWS[:3]), 0.0)[0], rel=1e-4)
    assert len(logged) == 2, "the last step has one batch"
    assert logged[1] < 1.5 * whole


# Processes

SHARED = ("NLLB, M2M100", "mBART", "T5", "GPT-2")


def train_in_a_process(folder: Path) -> None:
    """What each of two processes does; the first writes what was logged."""
    sizes = {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 2, "per_device_eval_batch_size": 1}
    logs = {}
    for name in SHARED:
        trainer = make(LanderTrainer, name, make_tokenizer(), folder, 0.0, **sizes)
        assert trainer.args.world_size == 2
        trainer.train()
        logs[name] = {**trainer.state.log_history[0], **trainer.evaluate(ROWS[:3])}
    if trainer.is_world_process_zero():
        (folder / "logs.json").write_text(json.dumps(logs), encoding="utf-8")


@pytest.mark.slow
def test_two_processes(tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    """Two processes with two batches of one row; and an evaluation of three rows, one of them given out twice."""
    run_in_processes(2, "-m", __name__, str(tmp_path))
    for name, found in json.loads((tmp_path / "logs.json").read_text(encoding="utf-8")).items():
        collator = TranslationCollator(tokenizer, encoder_decoder=name in TWO_STACKS)
        loss, norm = reference(build(name).train(), collator(ROWS), 0.0)
        assert found["loss"] == pytest.approx(loss, rel=1e-4), name
        assert found["grad_norm"] == pytest.approx(norm, rel=1e-3), name
        alone = make(LanderTrainer, name, tokenizer, tmp_path, 0.0)
        alone.train()
        expected = alone.evaluate(ROWS[:3])
        for key in ("eval_loss", "eval_loss_en-de", "eval_loss_de-en"):
            assert found[key] == pytest.approx(expected[key], rel=1e-4), (name, key)


if __name__ == "__main__":
    train_in_a_process(Path(sys.argv[1]))
