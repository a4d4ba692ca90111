"""Adapters loaded side by side never change each other."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from peft import PeftModel
from safetensors.torch import load_model, save_model
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from peft_landermt import NeuronMap, detect_neurons, split_adapter
from peft_landermt.language_pair import languages_of, parse_pairs

from ..conftest import SENTENCES, build_model, randomize_adapter
from .helpers import adapt, ids, lander_layers, logits

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")
TEN = ["en-de", "de-en", "en-fr", "fr-en", "en-it", "it-en", "en-ar", "ar-en", "en-zh", "zh-en"]


@pytest.fixture
def architecture() -> str:
    return "llama"


@pytest.fixture(scope="module")
def ten_pairs(tokenizer: PreTrainedTokenizerFast) -> NeuronMap:
    """A map of ten pairs; the sentences of three languages stand for all six."""
    texts = {
        language: [
            " ".join(text.split()[shift % 2 :]) + "." * shift for text in SENTENCES[("en", "de", "fr")[shift % 3]]
        ]
        for shift, language in enumerate(languages_of(parse_pairs(TEN)))
    }
    return detect_neurons(build_model("llama"), tokenizer, texts, TEN, num_layers=2, progress=False)


def load_ten(model: PeftModel, folder: Path) -> PeftModel:
    folders = split_adapter(model, folder)
    loaded = PeftModel.from_pretrained(build_model("llama"), str(folders[TEN[0]]), adapter_name=TEN[0])
    for pair in TEN[1:]:
        loaded.load_adapter(str(folders[pair]), adapter_name=pair)
    return loaded.eval()


def by_pair(model: PeftModel) -> dict[str, torch.Tensor]:
    return {pair: logits(model, ids(), adapter_names=[pair] * 3) for pair in TEN}


def test_adapters_that_came_from_one(base: PreTrainedModel, ten_pairs: NeuronMap, tmp_path: Path) -> None:
    """Each gives what the whole adapter gives for its pair, and no two use one piece of memory."""
    model = adapt(base, ten_pairs)
    loaded = load_ten(model, tmp_path)
    for pair, found in by_pair(loaded).items():
        assert found.equal(logits(model, ids(), language_pairs=[pair] * 3))
    tensors = [
        tensor for layer in lander_layers(loaded).values() for tensor in layer.lander_blocks.state_dict().values()
    ]
    filled = [tensor for tensor in tensors if tensor.numel()]
    assert len({tensor.untyped_storage().data_ptr() for tensor in filled}) == len(filled)


def change_in_place(model: PeftModel, _folder: Path) -> None:
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if ".en-de." in name:
                weight.mul_(0.5)


def step_without_a_pass(model: PeftModel, _folder: Path) -> None:
    model.set_adapter("en-de")
    weights = [weight for weight in model.parameters() if weight.requires_grad]
    for weight in weights:
        weight.grad = torch.ones_like(weight)
    torch.optim.SGD(weights, lr=0.1).step()


def zero(model: PeftModel) -> None:
    with torch.no_grad():
        for layer in lander_layers(model).values():
            for weight in layer.lander_blocks.parameters():
                weight.zero_()


def save_and_load_the_model(model: PeftModel, folder: Path) -> None:
    save_model(model, str(folder / "whole.safetensors"))
    zero(model)
    load_model(model, str(folder / "whole.safetensors"))


def save_and_load_the_state(model: PeftModel, folder: Path) -> None:
    accelerator = Accelerator(cpu=True)
    accelerator.prepare(model)
    accelerator.save_state(str(folder / "state"))
    zero(model)
    accelerator.load_state(str(folder / "state"))


@pytest.mark.parametrize(
    ("what", "changed"),
    [
        (change_in_place, ["en-de"]),
        (step_without_a_pass, ["en-de"]),
        (save_and_load_the_model, []),
        (save_and_load_the_state, []),
    ],
)
def test_what_happens_to_one_adapter_leaves_the_others(
    base: PreTrainedModel, ten_pairs: NeuronMap, tmp_path: Path, what: Any, changed: list[str]
) -> None:
    loaded = load_ten(adapt(base, ten_pairs), tmp_path / "pairs")
    before = by_pair(loaded)
    what(loaded, tmp_path)
    after = by_pair(loaded)
    assert [pair for pair in TEN if not after[pair].equal(before[pair])] == changed


def test_training_one_adapter_leaves_the_others(base: PreTrainedModel, ten_pairs: NeuronMap, tmp_path: Path) -> None:
    loaded = load_ten(adapt(base, ten_pairs), tmp_path)
    before = {}
    for pair in TEN:
        loaded.set_adapter(pair)
        before[pair] = logits(loaded, ids())
    loaded.set_adapter("en-de")
    optimizer = torch.optim.AdamW([weight for weight in loaded.parameters() if weight.requires_grad], lr=0.1)
    loaded.train()
    for _ in range(2):
        loaded(input_ids=ids(), labels=ids()).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    loaded.eval()
    for pair in TEN:
        loaded.set_adapter(pair)
        assert logits(loaded, ids()).equal(before[pair]) is (pair != "en-de")


def test_loading_into_one_adapter_leaves_the_others(
    base: PreTrainedModel, ten_pairs: NeuronMap, tmp_path: Path
) -> None:
    loaded = load_ten(adapt(base, ten_pairs), tmp_path / "first")
    other = adapt(build_model("llama"), ten_pairs, seed=9)
    folders = split_adapter(other, tmp_path / "second")
    loaded.set_adapter("de-en")
    before = logits(loaded, ids())
    loaded.load_adapter(str(folders["en-de"]), adapter_name="en-de")
    assert logits(loaded, ids()).equal(before)
    loaded.set_adapter("en-de")
    assert logits(loaded, ids()).equal(logits(other, ids(), language_pairs=["en-de"] * 3))


def test_fresh_adapters_share_nothing(base: PreTrainedModel, neuron_map: NeuronMap) -> None:
    model = adapt(base, neuron_map, ["en-de"])
    for name in ("second", "third"):
        model.add_adapter(name, model.peft_config["default"])
    model.set_adapter("third")
    randomize_adapter(model, seed=5)
    for layer in lander_layers(model).values():
        second, third = (dict(layer.blocks(name).named_parameters()) for name in ("second", "third"))
        assert not any(second[key].equal(third[key]) for key in second)
