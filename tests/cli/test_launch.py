"""`landermt` under torchrun: two processes over gloo."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from peft_landermt import NeuronMap
from peft_landermt.cli import main

from ..tuner.helpers import LOOPBACK
from .test_cli import WEIGHTS, Workshop, shop

__all__ = ["shop"]
pytestmark = pytest.mark.slow


def run_in_processes(count: int, *command: str) -> str:
    """Run a script or module under torchrun; return what the first process printed."""
    start = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(count)]
    environment = {**os.environ, "GLOO_SOCKET_IFNAME": LOOPBACK, "TQDM_DISABLE": "1"}
    done = subprocess.run([*start, *command], env=environment, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def launch(arguments: list[str]) -> str:
    """Run `landermt` in two processes."""
    return run_in_processes(2, "-m", "peft_landermt.cli", *arguments)


def test_detect(shop: Workshop, tmp_path: Path) -> None:
    path = tmp_path / "map.safetensors"
    out = launch([*shop.detect()[:-1], str(path), "--batch-size", "3"])
    assert out.count("written:") == 1
    alone = tmp_path / "alone.safetensors"
    assert main([*shop.detect()[:-1], str(alone), "--batch-size", "3"]) == 0
    assert NeuronMap.load(path) == NeuronMap.load(alone)


def test_train(shop: Workshop, tmp_path: Path) -> None:
    """Two processes with batches of 1 take the steps that one takes with batches of 2."""
    out = launch([*shop.train("--batch-size", "1"), "--output", str(tmp_path / "two")])
    assert out.count("written:") == 1
    assert main([*shop.train("--batch-size", "2"), "--output", str(tmp_path / "one")]) == 0
    found, expected = (load_file(tmp_path / name / WEIGHTS) for name in ("two", "one"))
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        torch.testing.assert_close(found[key], value, rtol=1e-3, atol=1e-5, msg=key)
    assert any(value.is_floating_point() and value.abs().max() > 1e-4 for key, value in found.items() if "_B" in key)


def test_evaluate(shop: Workshop, tmp_path: Path) -> None:
    """Two processes share three sentences; what they print and write is what one does."""
    scores = []
    for name, start in (("two", launch), ("one", main)):
        path = tmp_path / f"{name}.json"
        options = ["--adapter", str(shop.adapter), *shop.data, "--limit", "3", "--output", str(path)]
        said = start(["evaluate", *shop.model, *options])
        assert name == "one" or said.count("| en-de |") == 1
        scores.append(json.loads(path.read_text(encoding="utf-8")))
    assert scores[0] == scores[1] and len(scores[0]["en-de"]["hypotheses"]) == 3


def test_resume_on_another_number_of_processes(shop: Workshop, tmp_path: Path) -> None:
    """Begun by two processes and ended by one, it is the adapter that one process makes."""
    two, one = tmp_path / "two", tmp_path / "one"
    launch([*shop.train("--batch-size", "1", "--save-steps", "4"), "--output", str(two)])
    assert {path.name for path in two.glob("checkpoint-*")} == {"checkpoint-4", "checkpoint-8"}
    shutil.rmtree(two / "checkpoint-8")
    options = ["--batch-size", "2", "--save-steps", "4"]
    assert main([*shop.train(*options, "--resume"), "--output", str(two)]) == 0
    assert main([*shop.train(*options), "--output", str(one)]) == 0
    found, expected, half = (load_file(folder / WEIGHTS) for folder in (two, one, two / "checkpoint-4"))
    for key, value in expected.items():
        torch.testing.assert_close(found[key], value, rtol=1e-3, atol=1e-5, msg=key)
    assert any(not half[key].equal(value) for key, value in expected.items())


def test_streamed_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Processes share a stream: together they log what one process logs with batches twice as large."""
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[2]))  # the script imports from tests
    script = tmp_path / "train.py"
    script.write_text(STREAM, encoding="utf-8")
    logs = [
        json.loads(run_in_processes(processes, str(script), str(tmp_path), str(size)).splitlines()[-1])
        for processes, size in ((2, 1), (1, 2))
    ]
    assert logs[0] == pytest.approx(logs[1], rel=1e-4)
    assert len(logs[0]) == 3


STREAM = """
import json, sys
from datasets import Dataset
from transformers import TrainingArguments
from peft_landermt import LanderTrainer
from tests.conftest import PAIRS, build_model, make_tokenizer
from tests.tuner.helpers import adapt
from tests.translation.test_trainer import ROWS
args = TrainingArguments(sys.argv[1], use_cpu=True, report_to=[], max_steps=3, save_strategy="no", disable_tqdm=True,
                         per_device_train_batch_size=int(sys.argv[2]), logging_steps=1, learning_rate=1e-2)
trainer = LanderTrainer(adapt(build_model("llama"), language_pairs=PAIRS, general_rank=4), args,
                        train_dataset=Dataset.from_list(ROWS).to_iterable_dataset(), processing_class=make_tokenizer())
trainer.train()
if trainer.is_world_process_zero():
    print(json.dumps([entry["loss"] for entry in trainer.state.log_history if "loss" in entry]))
"""
