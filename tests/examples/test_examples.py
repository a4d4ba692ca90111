"""Every example runs; on the real base with a floor on its result."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest
from transformers import PreTrainedTokenizerFast

from ..conftest import build_model

EXAMPLES = Path(__file__).parents[2] / "examples"


def load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_adapt_two_pairs_on_a_tiny_model(
    tokenizer: PreTrainedTokenizerFast, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    build_model("llama", max_position_embeddings=1024).save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    options = ["--model", str(tmp_path / "model"), "--rows", "4", "--output", str(tmp_path / "out")]
    monkeypatch.setattr(sys, "argv", ["adapt_two_pairs.py", *options])
    load("adapt_two_pairs").main()
    for pair in ("en-de", "en-fr"):
        assert (tmp_path / "out" / "pairs" / pair / "adapter_model.safetensors").exists()


@pytest.mark.slow
def test_adapt_two_pairs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From English the base copies its source: about 6 BLEU."""
    monkeypatch.setattr(sys, "argv", ["adapt_two_pairs.py", "--output", str(tmp_path)])
    assert load("adapt_two_pairs").main() >= 11


def test_examples_are_short() -> None:
    for path in EXAMPLES.glob("*.py"):
        assert len(path.read_text(encoding="utf-8").splitlines()) < 80
