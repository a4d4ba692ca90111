"""Benchmarks that need no corpora, on tiny models with random weights."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from peft_landermt import NeuronMap

from .helpers import SCRIPTS, run_script


def run(script: str, *arguments: str) -> str:
    environment = {**os.environ, "TQDM_DISABLE": "1"}
    done = subprocess.run(
        [sys.executable, SCRIPTS / script, *arguments], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def test_random_base(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """A folder that loads like any base; its tokenizer loses nothing."""
    run_script(monkeypatch, "random_base.py", "tiny", "--layers", "3", "--output", str(tmp_path / "base"))
    printed = capsys.readouterr().out
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "base")
    assert printed.endswith(f"{model.num_parameters() / 1e6:.0f} M parameters, {len(tokenizer)} tokens\n")
    assert model.config.num_hidden_layers == 3 and model.config.vocab_size == len(tokenizer)
    for name in ("pad", "bos", "eos"):
        assert getattr(model.config, f"{name}_token_id") == getattr(tokenizer, f"{name}_token_id")
    ids = tokenizer("Die Brücke ist alt. 桥很旧。")["input_ids"]
    assert tokenizer.decode(ids) == "Die Brücke ist alt. 桥很旧。"
    assert torch.isfinite(model(input_ids=torch.tensor([ids])).logits).all()


def test_thin_products(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    run_script(monkeypatch, "thin.py", "--tokens", "2", "--repeats", "2")
    rows = [line.split(" | ") for line in capsys.readouterr().out.splitlines()[2:]]
    assert len(rows) == 24 and all(float(cell.strip(" |")) > 0 for row in rows for cell in row[2:])


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads memory from /proc")
def test_serving() -> None:
    parts = run("serving.py", "--requests", "20", "--hostile", "20", "--cycles", "6").splitlines()
    served, beside, cycled = map(json.loads, parts)
    assert served["answers"] == {"same": 20} and served["pairs"] == 10
    assert beside["answers"] == {"same": 40} and beside["times_alone"]["median_seconds"] > 0
    assert (cycled["cycles"], cycled["wrong"]) == (6, 0)


@pytest.mark.slow
def test_speed(tmp_path: Path) -> None:
    """Sections are measured and shown, and growth along an axis."""
    options = ["--shape", "tiny", "--dtype", "float32", "--repeats", "1", "--output", str(tmp_path / "speed.jsonl")]
    neuron_map = tmp_path / "map.safetensors"
    sections = ["training", "mixed", "grown", "adapters"]
    printed = run("speed.py", *options, "--sentences", "2", "--neuron-map", str(neuron_map), "--only", *sections)
    assert len(NeuronMap.load(neuron_map).language_pairs) == 10, "kept, for a run in another type"
    lines = (tmp_path / "speed.jsonl").read_text().splitlines()
    assert [json.loads(line)["section"] for line in lines] == sections
    assert "| training step beside LoRA, 10 pairs: defaults | at most 0.9 |" in printed
    chosen = ["--neuron-map", str(neuron_map), "--only", "training", "--contenders", "base", "lander-1"]
    printed = run("speed.py", *options, *chosen)
    assert "| lander-1 |" in printed and "| lora |" not in printed
    assert "| tiny | pairs | 10 | lander | " in run("speed.py", *options, "--grow", "pairs")
