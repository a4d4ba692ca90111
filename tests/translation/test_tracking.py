"""What goes into the log beside the loss: every pair's own loss, changes and gates."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from peft_landermt import LanderTrainer, NeuronMap

from ..conftest import PAIRS
from ..tuner.helpers import adapt
from ..versions import TRANSFORMERS_4
from .test_encoder_decoders import BY_PAIR, build
from .test_encoder_decoders import ROWS as SEQ2SEQ_ROWS
from .test_trainer import ROWS, arguments, lora, trainer_of


@pytest.fixture
def architecture() -> str:
    return "llama"


def of_pair(pair: str) -> list[dict[str, str]]:
    return [row for row in ROWS if row["language_pair"] == pair]


def test_losses_of_a_step_by_pair(
    base: PreTrainedModel, neuron_map: NeuronMap, tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    """One step on all rows: the logged losses are those of the untrained model on the rows of each pair."""
    model = adapt(base, neuron_map, car="learned")
    trainer = trainer_of(model, tokenizer, tmp_path, max_steps=1, per_device_train_batch_size=6)
    expected = {}
    with torch.no_grad():
        for pair in PAIRS:
            expected[pair] = float(trainer.compute_loss(model, trainer.data_collator(of_pair(pair))))
    trainer.train()
    log = next(entry for entry in trainer.state.log_history if "loss" in entry)
    for pair in PAIRS:
        assert log[f"loss_{pair}"] == pytest.approx(expected[pair], rel=1e-4)
    weights = {pair: int((trainer.data_collator(of_pair(pair))["labels"] != -100).sum()) for pair in PAIRS}
    mean = sum(expected[pair] * count for pair, count in weights.items()) / sum(weights.values())
    assert log["loss"] == pytest.approx(mean, rel=1e-4)
    assert {"change_general", "change_de", "gate_general_en-de", "gate_specific_en-fr"} <= log.keys()


def test_logs_cover_all_batches_since_the_last_one(
    base: PreTrainedModel, neuron_map: NeuronMap, tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    """Rows of one pair only: its mean over two steps of accumulated batches is the logged loss."""
    rows = [*of_pair("en-de"), *of_pair("en-de")]
    options = {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 2, "logging_steps": 2, "max_steps": 2}
    trainer = trainer_of(adapt(base, neuron_map), tokenizer, tmp_path, rows, learning_rate=0.0, **options)
    trainer.train()
    log = next(entry for entry in trainer.state.log_history if "loss" in entry)
    assert log["loss_en-de"] == pytest.approx(log["loss"], rel=1e-2)  # means of steps against a mean of tokens
    assert "loss_de-en" not in log


def test_other_models_have_losses_by_pair_too(
    base: PreTrainedModel, neuron_map: NeuronMap, tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    trainer = trainer_of(lora(base, neuron_map), tokenizer, tmp_path, max_steps=1)
    trainer.train()
    log = next(entry for entry in trainer.state.log_history if "loss" in entry)
    assert any(name.startswith("loss_") for name in log)
    assert not any(name.startswith(("change", "gate")) for name in log)


def test_evaluation_by_pair(
    base: PreTrainedModel, neuron_map: NeuronMap, tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    model = adapt(base, neuron_map)
    trainer = trainer_of(model, tokenizer, tmp_path, eval_dataset=ROWS, per_device_eval_batch_size=4)
    metrics = trainer.evaluate()
    for pair in PAIRS:
        with torch.no_grad():
            expected = float(trainer.compute_loss(model.eval(), trainer.data_collator(of_pair(pair))))
        assert metrics[f"eval_loss_{pair}"] == pytest.approx(expected, rel=1e-4)
    assert trainer.state.log_history[-1]["eval_loss_en-de"] == metrics["eval_loss_en-de"]


@pytest.mark.parametrize("kind", ["t5", "nllb"])
def test_encoder_decoders(kind: str, tmp_path: Path) -> None:
    """Their labels are not shifted."""
    model, seq2seq_tokenizer = build(kind)
    args = arguments(tmp_path, per_device_eval_batch_size=3)
    trainer = LanderTrainer(model, args, eval_dataset=SEQ2SEQ_ROWS, processing_class=seq2seq_tokenizer)
    metrics = trainer.evaluate()
    for pair, rows in BY_PAIR.items():
        with torch.no_grad():
            expected = float(model(**without_pairs(trainer.data_collator(rows))).loss)
        assert metrics[f"eval_loss_{pair}"] == pytest.approx(expected, rel=1e-4)


def without_pairs(batch: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in batch.items() if name != "language_pairs"}


def test_trackers_get_them(
    base: PreTrainedModel, neuron_map: NeuronMap, tokenizer: PreTrainedTokenizerFast, tmp_path: Path, monkeypatch: Any
) -> None:
    """TensorBoard's own files, read back."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", str(tmp_path / "events"))
    model = adapt(base, neuron_map, seed=None, car="learned")
    trainer = trainer_of(model, tokenizer, tmp_path, report_to=["tensorboard"], eval_dataset=ROWS)
    trainer.train()
    trainer.evaluate()
    folder = trainer.args.logging_dir if TRANSFORMERS_4 else tmp_path / "events"
    events = EventAccumulator(str(folder)).Reload()
    scalars = set(events.Tags()["scalars"])
    assert {"train/loss", "train/loss_en-de", "train/change_general", "train/gate_general_en-de"} <= scalars
    assert {"eval/loss", "eval/loss_en-fr"} <= scalars
    changes = [event.value for event in events.Scalars("train/change_general")]
    assert len(changes) == 8 and 0 < changes[0] < changes[-1]
