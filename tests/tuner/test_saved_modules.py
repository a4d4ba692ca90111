"""Modules of `modules_to_save` in calls that name an adapter for each sample."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from peft import PeftModel
from peft.utils import AuxiliaryTrainingWrapper
from safetensors.torch import load_file, save_file
from transformers import PreTrainedModel

from peft_landermt import NeuronMap
from peft_landermt.errors import AdapterError, ConfigError

from ..conftest import build_model, randomize_adapter
from ..versions import PEFT_BEFORE_0_20
from .helpers import adapt, ids, logits, make_config

NAMES = ["head", "other head", "no head", "__base__"]


@pytest.fixture
def architecture() -> str:
    return "llama"


@pytest.fixture
def model(base: PreTrainedModel, neuron_map: NeuronMap) -> PeftModel:
    """Two adapters with output layers of their own, and one without."""
    saved = {"modules_to_save": ["lm_head", "embed_tokens"]}
    model = adapt(base, neuron_map, ["en-de"], adapter_name="head", **saved)
    model.add_adapter("other head", make_config(neuron_map, ["de-en"], **saved))
    model.add_adapter("no head", make_config(neuron_map, ["en-fr"]))
    for seed, name in enumerate(NAMES[:-1]):
        model.set_adapter(name)
        randomize_adapter(model, seed=seed)
    return model.eval()


def alone(model: PeftModel, inputs: torch.Tensor) -> torch.Tensor:
    """Every row by its adapter alone."""
    rows = []
    for name, row in zip(NAMES, inputs.split(1), strict=True):
        if name == "__base__":
            with model.disable_adapter():
                rows.append(logits(model, row))
        else:
            model.set_adapter(name)
            rows.append(logits(model, row))
    return torch.cat(rows)


def test_a_file_without_their_weights(base: PreTrainedModel, neuron_map: NeuronMap, tmp_path: Path) -> None:
    """Refused before the base is touched."""
    adapt(base, neuron_map, ["en-de"], modules_to_save=["lm_head"]).save_pretrained(tmp_path)
    path = tmp_path / "adapter_model.safetensors"
    tensors = {key: value for key, value in load_file(path).items() if "lm_head" not in key}
    save_file(tensors, path)
    fresh = build_model("llama")
    before = [(name, type(module)) for name, module in fresh.named_modules()]
    with pytest.raises(AdapterError, match=r"modules_to_save='.*lm_head'.*holds no weights of it"):
        PeftModel.from_pretrained(fresh, str(tmp_path))
    assert [(name, type(module)) for name, module in fresh.named_modules()] == before


@pytest.mark.parametrize("active", NAMES[:-1])
def test_every_sample_has_its_own(model: PeftModel, active: str) -> None:
    inputs = ids(4)
    expected = alone(model, inputs)
    model.set_adapter(active)
    before = logits(model, inputs)
    torch.testing.assert_close(logits(model, inputs, adapter_names=NAMES), expected)
    torch.testing.assert_close(logits(model, inputs), before, rtol=0, atol=0)  # nothing stays behind


def test_beams(model: PeftModel) -> None:
    inputs = ids(4)
    options = {"num_beams": 3, "max_new_tokens": 5, "do_sample": False, "pad_token_id": 0}
    mixed = model.generate(input_ids=inputs, adapter_names=NAMES, **options)
    for name, row, found in zip(NAMES[:-1], inputs.split(1), mixed, strict=False):
        model.set_adapter(name)
        single = model.generate(input_ids=row, **options)[0]
        assert found[: len(single)].tolist() == single.tolist()


@pytest.mark.parametrize("module", ["norm", "self_attn", "q_proj"])
@pytest.mark.parametrize("named", ["first", "second", "__base__"])
def test_one_adapter_for_all_samples_takes_any_module(
    base: PreTrainedModel, neuron_map: NeuronMap, module: str, named: str
) -> None:
    """Also modules that are called by keywords, and those that PEFT cannot split by samples."""
    if module == "self_attn" and PEFT_BEFORE_0_20:
        pytest.skip("PEFT before 0.20 saves no modules that are called by keywords alone")
    model = adapt(base, neuron_map, ["en-de"], adapter_name="first", modules_to_save=[module])
    model.add_adapter("second", make_config(neuron_map, ["en-de"]))
    inputs = ids(3)
    if named == "__base__":
        with model.disable_adapter():
            expected = logits(model, inputs)
    else:
        model.set_adapter(named)
        expected = logits(model, inputs)
    for active in ("first", "second"):
        model.set_adapter(active)
        torch.testing.assert_close(logits(model, inputs, adapter_names=[named] * 3), expected)
    if module in ("norm", "self_attn"):
        model.set_adapter("first")
        with pytest.raises(ConfigError, match=f"modules_to_save='.*{module}'.*one adapter for all"):
            logits(model, inputs, adapter_names=["first", "second", "first"])


@pytest.mark.parametrize("reentrant", [False, True])
def test_gradient_checkpointing(base: PreTrainedModel, neuron_map: NeuronMap, reentrant: bool) -> None:
    """What is recomputed in the backward pass takes the adapters of its own call."""
    saved = {"modules_to_save": ["q_proj"]}
    model = adapt(base, neuron_map, ["en-de"], adapter_name="first", **saved)
    model.add_adapter("second", make_config(neuron_map, ["de-en"], **saved))
    randomize_adapter(model)
    for name, weight in model.named_parameters():
        weight.requires_grad_("first" in name or "second" in name)
    model.train()

    def gradients() -> dict[str, torch.Tensor]:
        model.zero_grad()
        names = ["first", "second", "first"]
        model(input_ids=ids(3), labels=ids(3), adapter_names=names).loss.backward()
        return {name: weight.grad for name, weight in model.named_parameters() if weight.grad is not None}

    expected = gradients()
    assert any("q_proj" in name and "second" in name for name in expected)
    model.enable_input_require_grads()
    model.gradient_checkpointing_enable({"use_reentrant": reentrant})
    found = gradients()
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient)


def test_an_error_leaves_no_trace(model: PeftModel) -> None:
    def state() -> list:
        wrappers = [module for module in model.modules() if isinstance(module, AuxiliaryTrainingWrapper)]
        return [
            (wrapper.disable_adapters, wrapper.active_adapters, len(wrapper._forward_pre_hooks))
            for wrapper in wrappers
        ]

    before = state()
    assert len(before) == 2
    with pytest.raises(IndexError):
        model(input_ids=ids(4) + 10_000, adapter_names=NAMES)
    assert state() == before
