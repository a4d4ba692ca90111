"""Damaged adapter folders: nothing of them is loaded, and the model is as it was."""

from __future__ import annotations

import copy
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from peft import PeftModel, set_peft_model_state_dict
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import PreTrainedModel

from peft_landermt import NeuronMap
from peft_landermt.errors import AdapterError, ConfigError, LanderError
from peft_landermt.lander.config import FORMAT_VERSION

from ..conftest import build_model
from .helpers import adapt, cloned_state, ids, lander_layers, logits, same_state

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


def snapshot(model: nn.Module) -> Any:
    return (
        [(name, type(module), module.training) for name, module in model.named_modules()],
        [(name, parameter.requires_grad) for name, parameter in model.named_parameters()],
        cloned_state(model),
        sorted(vars(model)),
    )


def assert_same(first: Any, second: Any) -> None:
    assert first[:2] == second[:2] and same_state(first[2], second[2]) and first[3] == second[3]


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
    assert_same(snapshot(untouched), before)


def test_a_pickle_is_never_read(saved: Path, untouched: PreTrainedModel) -> None:
    torch.save(load_file(saved / WEIGHTS), saved / "adapter_model.bin")
    (saved / WEIGHTS).unlink()
    with pytest.raises(AdapterError, match=r"may run code when read"):
        PeftModel.from_pretrained(untouched, str(saved))


@pytest.mark.parametrize("others", [False, True], ids=["first adapter", "second adapter"])
def test_refused_weights_leave_the_model_as_it_was(
    saved: Path, untouched: PreTrainedModel, neuron_map: NeuronMap, others: bool
) -> None:
    state = load_file(saved / WEIGHTS)
    key = next(key for key in state if key.endswith("general_neurons"))
    save_file({**state, key: state[key].flip(0)}, saved / WEIGHTS)
    model = adapt(untouched, neuron_map, ["en-de"], adapter_name="good") if others else untouched
    next(iter(untouched.parameters())).requires_grad_(False)
    before = snapshot(model)
    with pytest.raises(AdapterError, match=r"neuron indices must ascend"):
        if others:
            model.load_adapter(str(saved), "bad")
        else:
            PeftModel.from_pretrained(model, str(saved))
    assert_same(snapshot(model), before)
    if others:
        assert list(model.peft_config) == ["good"] and model.active_adapters == ["good"]


def test_a_refused_state_dict_leaves_a_trained_adapter_as_it_was(base: PreTrainedModel, neuron_map: NeuronMap) -> None:
    model = adapt(base, neuron_map)
    before = snapshot(model)
    with pytest.raises(AdapterError):
        set_peft_model_state_dict(model, {})
    assert_same(snapshot(model), before)


def test_a_newer_format_is_refused(saved: Path, untouched: PreTrainedModel) -> None:
    change_config(saved, format_version=FORMAT_VERSION + 1)
    with pytest.raises(ConfigError, match=r"format_version=3: this version reads up to 2; update peft_landermt"):
        PeftModel.from_pretrained(untouched, str(saved))


json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 3) | st.text(max_size=4) | st.just("en-de"),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=4,
)


def _mutate_config(data: st.DataObject, folder: Path) -> None:
    path = folder / CONFIG
    config = json.loads(path.read_text())
    target, key = config, data.draw(st.sampled_from(sorted(set(config) - {"peft_type", "task_type"})))
    while isinstance(target[key], dict) and target[key] and data.draw(st.booleans()):
        target = target[key]
        key = data.draw(st.sampled_from(sorted(target)))
    if data.draw(st.booleans()):
        del target[key]
    else:
        target[key] = data.draw(json_values)
    path.write_text(json.dumps(config))


def _mutate_tensors(data: st.DataObject, folder: Path) -> None:
    state = load_file(folder / WEIGHTS)
    key = data.draw(st.sampled_from(sorted(state)))
    action = data.draw(st.sampled_from(["drop", "rename", "shape", "type", "value", "flat"]))
    if action == "drop":
        del state[key]
    elif action == "rename":
        state[key + data.draw(st.sampled_from(["x", "_neurons", ".0"]))] = state.pop(key)
    elif action == "shape":
        state[key] = torch.cat([state[key], state[key][:1]])
    elif action == "type":
        state[key] = state[key].to(
            data.draw(st.sampled_from([torch.int32, torch.float64, torch.uint8, torch.bfloat16]))
        )
    elif action == "flat":
        state[key] = state[key].flatten()[:1].squeeze()
    else:
        extreme = [0, -1, 2**31 - 1] if not state[key].is_floating_point() else [float("nan"), float("inf"), 0.5]
        state[key].view(-1)[data.draw(st.integers(0, state[key].numel() - 1))] = data.draw(st.sampled_from(extreme))
    save_file({name: value.contiguous() for name, value in state.items()}, folder / WEIGHTS)


def _mutate_bytes(data: st.DataObject, folder: Path) -> None:
    content = bytearray((folder / WEIGHTS).read_bytes())
    position = data.draw(st.integers(0, 2000))
    content[position] ^= data.draw(st.integers(1, 255))
    (folder / WEIGHTS).write_bytes(content[: data.draw(st.sampled_from([len(content), position, len(content) - 1]))])


@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
@given(data=st.data())
@pytest.mark.parametrize("mutate", [_mutate_config, _mutate_tensors, _mutate_bytes], ids=lambda f: f.__name__[8:])
def test_any_mutation_loads_whole_or_not_at_all(
    saved: Path, untouched: PreTrainedModel, mutate: Callable[..., None], data: st.DataObject
) -> None:
    """No error but a typed one, and after it the model is as it was."""
    folder = saved.with_name("mutated")
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(saved, folder)
    mutate(data, folder)
    before = snapshot(untouched)
    model = copy.deepcopy(untouched)
    try:
        loaded = PeftModel.from_pretrained(model, str(folder))
    except (LanderError, ValueError) as error:
        # PEFT's own, for a target that matches nothing
        assert isinstance(error, LanderError) or type(error).__name__ == "NoMatchingPeftModuleError", error
        assert_same(snapshot(model), before)
    else:
        assert torch.isfinite(logits(loaded.eval(), ids(), **_route(loaded))).all()


def _route(model: Any) -> dict[str, Any]:
    pairs = model.base_model.routed_language_pairs
    return {"language_pairs": [pairs[0]] * 3} if pairs else {}


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


@pytest.mark.parametrize("kind", ["missing tensor", "NaN", "unsorted"])
def test_a_damaged_second_adapter_leaves_the_first_as_it_is(
    damaged: Callable[[str], Path], neuron_map: NeuronMap, kind: str
) -> None:
    model = adapt(build_model("llama"), neuron_map, ["en-de"], adapter_name="good", seed=4)
    expected = logits(model, ids())
    with pytest.raises(AdapterError):
        model.load_adapter(damaged(kind), "bad")
    assert model.active_adapter == "good" and logits(model, ids()).equal(expected)
