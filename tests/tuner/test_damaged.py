"""Damaged adapter folders: nothing of them is loaded, and the model is as it was."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel, set_peft_model_state_dict
from safetensors.torch import load_file, save_file
from transformers import PreTrainedModel

from peft_landermt import NeuronMap
from peft_landermt.errors import AdapterError, ConfigError, LanderError
from peft_landermt.lander.config import FORMAT_VERSION

from ..conftest import build_model
from .helpers import adapt, lander_layers, same_state
from .roads import assert_as_before, snapshot

WEIGHTS, CONFIG = "adapter_model.safetensors", "adapter_config.json"
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")


@pytest.fixture
def architecture() -> str:
    return "llama"


@pytest.fixture
def saved(base: PreTrainedModel, neuron_map: NeuronMap, tmp_path: Path) -> Path:
    adapt(base, neuron_map, ["en-de", "en-fr"]).save_pretrained(tmp_path / "adapter")
    return tmp_path / "adapter"


@pytest.fixture
def untouched() -> PreTrainedModel:
    return build_model("llama")


def change_config(folder: Path, **fields: Any) -> None:
    path = folder / CONFIG
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))


@pytest.mark.parametrize(
    ("fields", "error"),
    [
        ({"rank": 4}, r"rank=4: is no field of LanderConfig"),
        ({"general_rank": "16"}, r"general_rank='16': must be a positive integer"),
        ({"car": "always"}, r"car='always': must be one of"),
        ({"car": 1}, r"car=1: must be one of off, paper"),
        ({"init_weights": "yes"}, r"init_weights='yes': must be true or false"),
        (
            {"neuron_counts": {"model.layers.0.mlp": 3}},
            r"neuron_counts\['model.layers.0.mlp'\]=3: must have the fields",
        ),
        ({"neuron_counts": {}}, r"neuron_counts={}"),
        ({"language_pairs": ["en-en"]}, r"source and target language must differ"),
        ({"target_modules": "("}, r"is no regular expression"),
        ({"base_fingerprint": "0" * 16}, r"the adapter was made for other weights"),
    ],
    ids=str,
)
def test_a_damaged_config(saved: Path, untouched: PreTrainedModel, fields: dict[str, Any], error: str) -> None:
    change_config(saved, **fields)
    before = snapshot(untouched)
    with pytest.raises(LanderError, match=error):
        PeftModel.from_pretrained(untouched, str(saved))
    assert_as_before(untouched, before)


def test_a_refused_state_dict_leaves_a_trained_adapter_as_it_was(base: PreTrainedModel, neuron_map: NeuronMap) -> None:
    model = adapt(base, neuron_map)
    before = snapshot(model)
    with pytest.raises(AdapterError):
        set_peft_model_state_dict(model, {})
    assert_as_before(model, before)


def test_a_newer_format_is_refused(saved: Path, untouched: PreTrainedModel) -> None:
    change_config(saved, format_version=FORMAT_VERSION + 1)
    with pytest.raises(
        ConfigError,
        match=f"format_version={FORMAT_VERSION + 1}: this version reads up to {FORMAT_VERSION}; update peft_landermt",
    ):
        PeftModel.from_pretrained(untouched, str(saved))


# Tables of damage


def change(key_end: str, function: Callable[[torch.Tensor], torch.Tensor]) -> Callable[[dict[str, Any]], None]:
    """Damage the first tensor whose key ends like this."""

    def damage(state: dict[str, Any]) -> None:
        key = next(key for key in sorted(state) if key.endswith(key_end))
        state[key] = function(state[key].clone()).contiguous()

    return damage


def filled(value: float, index: int = 0) -> Callable[[torch.Tensor], torch.Tensor]:
    def function(tensor: torch.Tensor) -> torch.Tensor:
        tensor.view(-1)[index] = value
        return tensor

    return function


def remove(state: dict[str, Any]) -> None:
    del state[sorted(state)[3]]


def add(state: dict[str, Any]) -> None:
    key = sorted(state)[0]
    state[f"{key.rpartition('.')[0]}.fr_neurons"] = torch.zeros(2, dtype=torch.int32)


def two_blocks(state: dict[str, Any]) -> None:
    """The first German neuron of an FFN becomes its first English one too."""
    german = next(key for key in sorted(state) if key.endswith("de_neurons"))
    neurons = state[german.replace("de_neurons", "en_neurons")].clone()
    general = state[german.replace("de_neurons", "general_neurons")]
    neurons[0] = general[general < neurons[1]][0]
    state[german.replace("de_neurons", "en_neurons")] = neurons


DAMAGE: dict[str, tuple[Callable[[dict[str, Any]], None], str]] = {
    "missing tensor": (remove, "adapter_model.safetensors=.*lacks"),
    "superfluous tensor": (add, "adapter_model.safetensors=.*has .*fr_neurons"),
    "too few rows": (change("de_neurons", lambda t: t[:-1]), "expected shape"),
    "too narrow": (change("de_down_proj", lambda t: t[:, :-1]), "expected shape"),
    "another rank": (change("_A", lambda t: t[:-1]), "expected shape"),
    "NaN": (change("de_down_proj", filled(float("nan"), 5)), "NaN or infinity.*broken"),
    "infinity": (change("awareness_sums", filled(float("inf"))), "NaN or infinity.*broken"),
    "too large index": (change("general_neurons", filled(10**6, -1)), "neuron indices must ascend within 0 to"),
    "negative index": (change("general_neurons", filled(-1)), "neuron indices must ascend within 0 to"),
    "unsorted": (change("general_neurons", lambda t: t.flip(0)), "neuron indices must ascend"),
    "duplicate": (change("general_neurons", lambda t: torch.cat([t[:1], t[:1], t[2:]])), "neuron indices must ascend"),
    "two blocks": (two_blocks, "a neuron in two blocks"),
    "fractional indices": (change("de_neurons", lambda t: t.float()), "expected torch.int32"),
}


@pytest.fixture
def damaged(base: PreTrainedModel, neuron_map: NeuronMap, tmp_path: Path) -> Callable[[str], Path]:
    """Saves an adapter with the damage of that name."""
    adapt(base, neuron_map, ["en-de"]).save_pretrained(tmp_path)

    def make(kind: str) -> Path:
        state = load_file(tmp_path / WEIGHTS)
        before = {key: value.clone() for key, value in state.items()}
        DAMAGE[kind][0](state)
        assert not same_state(state, before)
        save_file(state, tmp_path / WEIGHTS)
        return tmp_path

    return make


@pytest.mark.parametrize("kind", DAMAGE)
def test_damaged_file(damaged: Callable[[str], Path], kind: str) -> None:
    folder = damaged(kind)
    with pytest.raises(AdapterError, match=DAMAGE[kind][1]):
        PeftModel.from_pretrained(build_model("llama"), folder)
    with pytest.raises(AdapterError, match=DAMAGE[kind][1]):
        PeftModel.from_pretrained(build_model("llama"), folder, low_cpu_mem_usage=True)


def test_truncated_or_empty_file(base: PreTrainedModel, neuron_map: NeuronMap, tmp_path: Path) -> None:
    adapt(base, neuron_map).save_pretrained(tmp_path)
    whole = (tmp_path / WEIGHTS).read_bytes()
    for size in (len(whole) - 1, 100, 4, 0):
        (tmp_path / WEIGHTS).write_bytes(whole[:size])
        untouched = build_model("llama")
        with pytest.raises(AdapterError, match=r"adapter_model.safetensors': is truncated or damaged"):
            PeftModel.from_pretrained(untouched, tmp_path)
        assert not lander_layers(untouched)
