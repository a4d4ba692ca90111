"""A pair as a plain LoRA adapter: PEFT loads it where this package cannot be imported, and computes the same."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file
from transformers import PreTrainedModel

from peft_landermt import NeuronMap, export_lora
from peft_landermt.errors import AdapterError, ConfigError, LanguagePairError

from ..conftest import PAIRS, build_model
from ..tuner.helpers import adapt as adapt_lander
from ..tuner.helpers import ids, logits
from .helpers import adapt, build

LSLO: dict[str, dict[str, Any]] = {
    "one rank": {},
    "ranks": {"rank": {"en": 1, "de": 3, "fr": 2}, "scaling": 0.5, "index": "source"},
    "learned": {"index": "learned", "rank": {"en": 1, "de": 3, "fr": 2}},
    "saved": {"modules_to_save": ["lm_head"]},
    "attention": {"target_modules": ["q_proj", "v_proj"], "layers_to_transform": [1]},
}


@pytest.fixture(autouse=True)
def _offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


def same_logits(model: PeftModel, base: PreTrainedModel, folder: Path, pair: str) -> None:
    plain = logits(base, ids())
    loaded = PeftModel.from_pretrained(base, str(folder)).eval()
    assert isinstance(loaded.peft_config["default"], LoraConfig)
    expected = logits(model, ids(), language_pairs=[pair] * 3)
    torch.testing.assert_close(logits(loaded, ids()), expected, rtol=1e-4, atol=1e-4)
    assert not expected.equal(plain)


@pytest.mark.parametrize("kind", LSLO)
def test_lslo(kind: str, tmp_path: Path) -> None:
    model = adapt(build("llama"), PAIRS, **LSLO[kind])
    for pair in (*PAIRS, "de-fr"):
        same_logits(model, build("llama"), export_lora(model, tmp_path / pair, pair), pair)
    values = json.loads((tmp_path / "de-en" / "adapter_config.json").read_text())
    assert values["peft_type"] == "LORA" and bool(values["rank_pattern"]) is False
    segments = {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}
    assert {*values["target_modules"]} == segments or kind == "attention"


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("architecture", ["gpt2", "m2m100", pytest.param("t5", marks=pytest.mark.slow)])
def test_architectures(architecture: str, tmp_path: Path) -> None:
    """In an encoder-decoder, ranks of the source language below and of the target language above."""
    model = adapt(build(architecture), PAIRS, rank={"en": 1, "de": 3, "fr": 2})
    for pair in PAIRS:
        same_logits(model, build(architecture), export_lora(model, tmp_path / pair, pair), pair)
    values = json.loads((tmp_path / "en-de" / "adapter_config.json").read_text())
    if architecture != "gpt2":
        assert values["r"] == 3 and {*values["rank_pattern"].values()} == {1}
        assert all("encoder." in name for name in values["rank_pattern"])
    assert values["fan_in_fan_out"] is (architecture == "gpt2")


LANDER: dict[str, dict[str, Any]] = {
    "ffn": {"general_rank": 4, "specific_rank": 2},
    "output": {"general_rank": 4, "specific_rank": 2, "projections": "output"},
    "general": {"general_rank": 4, "tune": "general"},
    "attention": {"general_rank": 4, "specific_rank": 2, "attention_modules": ["q", "v", "o"], "attention_rank": 3},
}


@pytest.mark.parametrize("architecture", ["llama", "bloom"])
@pytest.mark.parametrize("kind", LANDER)
def test_lander(
    architecture: str,
    kind: str,
    _bases: Callable[[str], tuple[PreTrainedModel, NeuronMap]],
    tmp_path: Path,
) -> None:
    """Factors over some neurons have zero rows for the others; ranks of the groups add up."""
    model = adapt_lander(build_model(architecture), _bases(architecture)[1], PAIRS, **LANDER[kind])
    for pair in PAIRS:
        same_logits(model, build_model(architecture), export_lora(model, tmp_path / pair, pair), pair)


ROWS = ({"general_rank": None}, {"general_rank": 4, "specific_rank": None})
ROUTED = ({"car": "paper"}, {"car": "learned"}, {"car": "token"}, {"inactive_neurons": "drop"})


@pytest.mark.parametrize("options", [*ROWS, *({"specific_rank": 2, **each} for each in ROUTED)], ids=str)
def test_what_is_no_low_rank_sum_is_refused(
    options: dict[str, Any], _bases: Callable[[str], tuple[PreTrainedModel, NeuronMap]], tmp_path: Path
) -> None:
    model = adapt_lander(build_model("llama"), _bases("llama")[1], PAIRS, **options)
    with pytest.raises(ConfigError, match=r"whole rows|routes neurons"):
        export_lora(model, tmp_path / "out", "en-de")
    assert not (tmp_path / "out").exists()


def test_bad_arguments_are_refused(tmp_path: Path) -> None:
    model = adapt(build("llama"), PAIRS)
    with pytest.raises(LanguagePairError, match="holds en-de, de-en, en-fr"):
        export_lora(model, tmp_path / "out")
    for pair in ("en-it", "de-de", "x"):
        with pytest.raises(LanguagePairError, match="language_pair="):
            export_lora(model, tmp_path / "out", pair)
    with pytest.raises(AdapterError, match="loaded:"):
        export_lora(model, tmp_path / "out", "en-de", "other")
    lora = get_peft_model(build("llama"), LoraConfig(task_type="CAUSAL_LM", target_modules=["q_proj"]))
    with pytest.raises(AdapterError, match="name a LANDER or LSLO adapter"):
        export_lora(lora, tmp_path / "out", "en-de")
    assert not (tmp_path / "out").exists()


SCRIPT = """
import sys
sys.modules["peft_landermt"] = None
import torch
from peft import AutoPeftModelForCausalLM
from safetensors.torch import load_file, save_file
model = AutoPeftModelForCausalLM.from_pretrained(sys.argv[1]).eval()
with torch.no_grad():
    logits = model(input_ids=load_file(sys.argv[2])["ids"]).logits
save_file({"logits": logits}, sys.argv[3])
"""


@pytest.mark.slow  # half of it is the start of Python
def test_a_process_without_this_package_gives_the_same_logits(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    base = build("llama")
    base.save_pretrained(tmp_path / "base")
    base.name_or_path = str(tmp_path / "base")
    model = adapt(base, PAIRS, rank={"en": 1, "de": 3, "fr": 2}, index=["source", "target", "learned", "target"])
    export_lora(model, tmp_path / "lora", "en-de")
    save_file({"ids": ids()}, tmp_path / "ids.safetensors")
    files = [str(tmp_path / name) for name in ("lora", "ids.safetensors", "logits.safetensors")]
    subprocess.run([sys.executable, "-c", SCRIPT, *files], check=True, timeout=200, cwd=tmp_path)
    found = load_file(tmp_path / "logits.safetensors")["logits"]
    torch.testing.assert_close(found, logits(model, ids(), language_pairs=["en-de"] * 3), rtol=1e-5, atol=1e-5)
