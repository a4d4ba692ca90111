"""Pair adapters loaded side by side keep one copy of their equal blocks, and never change each other."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from peft import PeftModel
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


def bytes_of(model: torch.nn.Module) -> int:
    """Bytes of all adapters, each piece of memory counted once."""
    pieces = {}
    for layer in lander_layers(model).values():
        for tensor in (*layer.lander_blocks.parameters(), *layer.lander_blocks.buffers()):
            pieces[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
    return sum(pieces.values())


def load_ten(model: PeftModel, folder: Path) -> PeftModel:
    folders = split_adapter(model, folder)
    loaded = PeftModel.from_pretrained(build_model("llama"), str(folders[TEN[0]]), adapter_name=TEN[0])
    for pair in TEN[1:]:
        loaded.load_adapter(str(folders[pair]), adapter_name=pair)
    return loaded.eval()


@pytest.mark.parametrize("rank", [None, 4])
def test_ten_pair_adapters_share_equal_blocks(
    base: PreTrainedModel, ten_pairs: NeuronMap, tmp_path: Path, rank: int | None
) -> None:
    model = adapt(base, ten_pairs, general_rank=rank)
    loaded = load_ten(model, tmp_path)
    assert bytes_of(loaded) <= 1.3 * bytes_of(model)
    for pair in TEN:
        loaded.set_adapter(pair)
        assert logits(loaded, ids()).equal(logits(model, ids(), language_pairs=[pair] * 3))
    assert bytes_of(loaded) <= 1.3 * bytes_of(model), "swapping and inference take no copies"


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
