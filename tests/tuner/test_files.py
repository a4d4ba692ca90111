"""Adapter folders: their size and type, old ones, damaged ones, and saving that is interrupted."""

from __future__ import annotations

import copy
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from peft import PeftModel, get_peft_model, set_peft_model_state_dict
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import PreTrainedModel

from peft_landermt import LanderConfig, NeuronMap
from peft_landermt.errors import AdapterError, ConfigError, LanderError

from ..conftest import PAIRS, build_model
from .helpers import adapt, cloned_state, ids, lander_layers, logits, make_config, same_state

WEIGHTS, CONFIG = "adapter_model.safetensors", "adapter_config.json"
STORED = Path(__file__).parent / "stored" / "format-1"
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")


@pytest.fixture
def architecture() -> str:
    return "llama"


# Type and size


@pytest.mark.parametrize("save_dtype", [None, "fp32", "bf16"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_type_of_saved_deltas(
    base: PreTrainedModel, neuron_map: NeuronMap, tmp_path: Path, dtype: torch.dtype, save_dtype: Any
) -> None:
    expected = {None: dtype, "fp32": torch.float32, "bf16": torch.bfloat16}[save_dtype]
    options = {"verify_base": False, "save_dtype": save_dtype}
    model = adapt(base.to(dtype), neuron_map, car="learned", **options)
    model.save_pretrained(tmp_path / "first")
    for key, value in load_file(tmp_path / "first" / WEIGHTS).items():
        name = key.rpartition(".")[2]
        if name.endswith("_neurons"):
            assert value.dtype == torch.int32
        else:
            assert value.dtype == (torch.float32 if name in ("gates", "awareness_sums") else expected)
    loaded = PeftModel.from_pretrained(build_model("llama").to(dtype), str(tmp_path / "first"))
    assert all(
        weight.dtype == torch.float32 for weight in lander_layers(loaded).popitem()[1].lander_blocks.parameters()
    )
    loaded.save_pretrained(tmp_path / "second")
    assert (tmp_path / "first" / WEIGHTS).read_bytes() == (tmp_path / "second" / WEIGHTS).read_bytes()


@pytest.mark.parametrize("rank", [None, 16])
def test_a_file_is_as_large_as_its_rows(neuron_map: NeuronMap, tmp_path: Path, rank: int | None) -> None:
    """Within 1%, header included, for rows of a usual width."""
    model = build_model("llama", hidden_size=512, intermediate_size=1024)
    config = LanderConfig(task_type="CAUSAL_LM", language_pairs=PAIRS, general_rank=rank)
    config.neuron_counts = {
        f"model.layers.{layer}.mlp": {
            "layer": layer,
            "neurons": 1024,
            "width": 512,
            "general": 900,
            "specific": {"de": 60, "en": 64},
            "language_pairs": ["en-de", "de-en"],
        }
        for layer in (0, 2)
    }
    config.language_pairs = ["en-de", "de-en"]
    get_peft_model(model, config).save_pretrained(tmp_path)
    general = 900 * 512 if rank is None else 900 * rank + rank * 512
    expected = 2 * (3 * 4 * (general + 124 * 512) + 4 * 1024 + 2 * 2 * 4)
    assert abs((tmp_path / WEIGHTS).stat().st_size / expected - 1) < 0.01


# Old formats


def test_a_stored_adapter_of_format_1_still_loads() -> None:
    """`tests/tuner/stored/format-1` was written once; its README says by what. The sums were printed then."""
    model = PeftModel.from_pretrained(build_model("llama"), str(STORED)).eval()
    assert model.peft_config["default"].format_version == 1
    expected = json.loads((STORED / "expected.json").read_text())
    for pair, total in expected.items():
        out = logits(model, ids(), language_pairs=[pair] * 3)
        assert float(out.double().abs().sum()) == pytest.approx(total, rel=1e-5)


def test_a_newer_format_is_refused(saved: Path, untouched: PreTrainedModel) -> None:
    change_config(saved, format_version=2)
    with pytest.raises(ConfigError, match=r"format_version=2: this version reads up to 1; update peft_landermt"):
        PeftModel.from_pretrained(untouched, str(saved))


# Damage: nothing is loaded, and the model is as it was


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


# Interrupted saving

_SAVE_FOREVER = """
import sys, torch
sys.path.insert(0, {root!r})
from tests.conftest import build_model
from peft import get_peft_model
from peft_landermt import LanderConfig
model = get_peft_model(build_model("llama"), LanderConfig(task_type="CAUSAL_LM", general_rank=None))
value = 0
while True:
    value += 1
    with torch.no_grad():
        for weight in model.parameters():
            if weight.requires_grad:
                weight.fill_(value)
    model.save_pretrained({folder!r})
    print(value, flush=True)
"""


def test_a_killed_save_leaves_a_whole_adapter_or_none(tmp_path: Path) -> None:
    """Killed at any moment while it saves again and again, each time with one value everywhere."""
    root = str(Path(__file__).parents[2])
    for wait in (0.0, 0.011, 0.023, 0.05):
        script = _SAVE_FOREVER.format(root=root, folder=str(tmp_path))
        with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE) as process:
            assert process.stdout is not None and process.stdout.readline()
            time.sleep(wait)
            os.kill(process.pid, signal.SIGKILL)
        try:
            model = PeftModel.from_pretrained(build_model("llama"), str(tmp_path))
        except AdapterError as error:
            assert error.field == "digest"  # the weights of one save, and the config of the one before
        else:
            layers = lander_layers(model).values()
            assert len({float(v) for w in layers for p in w.lander_blocks.parameters() for v in p.unique()}) == 1
        shutil.rmtree(tmp_path)


def test_config_class_reads_its_own_folder(saved: Path, tmp_path: Path) -> None:
    """A config alone, without weights, is a config like PEFT's."""
    config = LanderConfig.from_pretrained(str(saved))
    config.save_pretrained(str(tmp_path / "alone"))
    assert [path.name for path in (tmp_path / "alone").iterdir()] == [CONFIG]
    assert LanderConfig.from_pretrained(str(tmp_path / "alone")) == config
    assert make_config(general_rank=4) != config
