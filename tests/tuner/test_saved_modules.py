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
from peft_landermt.errors import AdapterError

from ..conftest import build_model, randomize_adapter
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
    with pytest.raises(AdapterError, match=r"modules_to_save='lm_head'.*holds no weights of it"):
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


def test_switched_off(model: PeftModel) -> None:
    with model.disable_adapter():
        plain = logits(model, ids(4))
        torch.testing.assert_close(logits(model, ids(4), adapter_names=NAMES), plain)
