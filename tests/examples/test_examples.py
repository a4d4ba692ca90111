"""Every example runs; on the real base with a floor on its result."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest
from accelerate import FullyShardedDataParallelPlugin
from accelerate.commands.config.config_args import load_config_from_file
from safetensors.torch import load_file
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from peft_landermt import LanderConfig

from ..conftest import build_model
from ..translation.test_encoder_decoders import build as build_encoder_decoder

pytestmark = pytest.mark.usefixtures("usual_lengths")

EXAMPLES = Path(__file__).parents[2] / "examples"


def load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


WRITTEN = {
    "adapt_two_pairs": ["pairs/en-de", "pairs/en-fr"],
    "train_with_trainer": ["adapter"],
    "train_with_sft": ["adapter"],
    "train_with_accelerate": ["adapter"],
    "train_with_seq2seq_trainer": ["adapter"],
}
"""Folders that hold adapters afterwards."""


QUICK = ("adapt_two_pairs", "train_with_trainer")


@pytest.mark.parametrize("name", [n if n in QUICK else pytest.param(n, marks=pytest.mark.slow) for n in WRITTEN])
def test_on_a_tiny_model(
    name: str, tokenizer: PreTrainedTokenizerFast, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model: PreTrainedModel = build_model("llama", max_position_embeddings=1024)
    if "seq2seq" in name:
        model, tokenizer = build_encoder_decoder("nllb")
    model.save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    options = ["--model", str(tmp_path / "model"), "--rows", "16", "--output", str(tmp_path / "out")]
    monkeypatch.setattr(sys, "argv", [name, *options])
    load(name).main()
    for folder in WRITTEN[name]:
        config = LanderConfig.from_pretrained(str(tmp_path / "out" / folder))
        assert config.language_pairs in (["en-de"], ["en-fr"], ["en-de", "en-fr"])
        weights = load_file(tmp_path / "out" / folder / "adapter_model.safetensors")
        assert any(value.any() for key, value in weights.items() if key.endswith("_B")), "training moves B from zero"


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in WRITTEN if "seq2seq" not in name])  # no encoder-decoder to install
def test_on_the_real_base(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From English the base copies its source: about 6 BLEU."""
    monkeypatch.setattr(sys, "argv", [name, "--output", str(tmp_path)])
    assert load(name).main() >= 11


def test_every_example_is_tested() -> None:
    """The notebook, and the options of a training in YAML, in tests/test_tutorial.py."""
    assert {path.stem for path in (EXAMPLES / "configs").iterdir()} == {*OF_ACCELERATE, "train"}
    assert [path.name for path in EXAMPLES.glob("*.ipynb")] == ["tutorial.ipynb"]
    assert {path.stem for path in EXAMPLES.glob("*.py")} == {
        *WRITTEN,
        *("serve", "batching", "guard", "demo_ui"),  # test_serve.py, test_batching.py, test_demo_ui.py
    }


def test_examples_are_short() -> None:
    for path in EXAMPLES.glob("train_*.py"):
        assert len(path.read_text(encoding="utf-8").splitlines()) < 80


OF_ACCELERATE = {"ddp": "MULTI_GPU", "fsdp2": "FSDP", "deepspeed_zero2": "DEEPSPEED"}


@pytest.mark.parametrize("name", OF_ACCELERATE)
def test_accelerate_reads_the_configs(name: str) -> None:
    config = load_config_from_file(str(EXAMPLES / "configs" / f"{name}.yaml"))
    assert config.num_processes == 8
    assert str(config.distributed_type).upper().endswith(OF_ACCELERATE[name])
    if name == "fsdp2":
        assert (
            FullyShardedDataParallelPlugin(
                fsdp_version=config.fsdp_config["fsdp_version"],
                auto_wrap_policy=config.fsdp_config["fsdp_auto_wrap_policy"],
                reshard_after_forward=config.fsdp_config["fsdp_reshard_after_forward"],
                state_dict_type=config.fsdp_config["fsdp_state_dict_type"],
            ).fsdp_version
            == 2
        )
