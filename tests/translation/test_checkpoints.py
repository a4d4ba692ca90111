"""Checkpoints of trainers that know nothing of `save_dtype`, over bases in half precision."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import PreTrainedTokenizerFast, Trainer, TrainingArguments

from peft_landermt import TranslationCollator
from peft_landermt.translation import FullPrecisionCheckpoints

from ..conftest import build_model
from ..tuner.helpers import adapt

ROWS = [{"source": "Tea?", "target": "Tee?", "language_pair": "en-de"}] * 2


def train(tokenizer: Any, folder: Path, dtype: torch.dtype, *callbacks: Any, **options: Any) -> Any:
    model = adapt(build_model("llama").to(dtype), language_pairs=["en-de"], **options)
    arguments = TrainingArguments(
        str(folder),
        max_steps=2,
        save_steps=1,
        report_to=[],
        use_cpu=True,
        disable_tqdm=True,
        remove_unused_columns=False,
    )
    Trainer(model, arguments, TranslationCollator(tokenizer), ROWS, callbacks=list(callbacks)).train()
    return model


def deltas(folder: Path) -> dict[str, torch.Tensor]:
    return {key: value for key, value in load_file(folder / "adapter_model.safetensors").items() if "_proj_" in key}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_as_they_are_trained(tokenizer: PreTrainedTokenizerFast, tmp_path: Path, dtype: torch.dtype) -> None:
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*rounded values")
        model = train(tokenizer, tmp_path, dtype, FullPrecisionCheckpoints())
    trained = dict(model.named_parameters())
    saved = deltas(tmp_path / "checkpoint-2")
    assert saved and {value.dtype for value in saved.values()} == {torch.float32}
    found = [value for name, value in trained.items() if value.requires_grad]
    assert sum(value.numel() for value in saved.values()) == sum(value.numel() for value in found)
    assert sum(float(value.double().sum()) for value in saved.values()) == pytest.approx(
        sum(float(value.detach().double().sum()) for value in found), rel=1e-12
    )
    model.save_pretrained(str(tmp_path / "final"))
    assert {value.dtype for value in deltas(tmp_path / "final").values()} == {dtype}, "as before"


def test_rounded_ones_are_told(tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match=r"checkpoint-1 holds deltas in BF16.*callbacks=\[FullPrecisionCheckpoints"):
        model = train(tokenizer, tmp_path, torch.bfloat16)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*rounded values")
        model.save_pretrained(str(tmp_path / "final"))
        train(tokenizer, tmp_path / "asked", torch.bfloat16, save_dtype="bf16")
        train(tokenizer, tmp_path / "exact", torch.float32)
