"""4-bit weights that bitsandbytes packs, row by row, at the first call on a CPU with `avx512_bf16`.

No gradient passes a packed weight, and `state_dict`, which PEFT calls to save and to load, unpacks it with its scales
in another order. So detection and adapters keep a base unpacked.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from peft.utils.integrations import dequantize_module_weight
from torch import nn
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, PreTrainedModel

from peft_landermt import detect_neurons
from peft_landermt.ffn import find_ffns
from peft_landermt.fingerprint import fingerprint
from peft_landermt.linear import allow_packing, device_and_dtype, features, has_dense_weight, is_packed, keep_unpacked

from ..conftest import PAIRS, SENTENCES, build_model, make_tokenizer
from .helpers import adapt, ids, logits
from .packing import packs_weights

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning", "ignore::DeprecationWarning")
detect = partial(detect_neurons, num_layers=2, general_ratio=0.7, progress=False)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("base")
    build_model("llama", hidden_size=64, intermediate_size=128).save_pretrained(path)
    return path


@pytest.fixture(params=[True, False], ids=["scales quantized too", "scales in float32"])
def base(folder: Path, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[PreTrainedModel]:
    """A base that packs its weights when it is called."""
    pytest.importorskip("bitsandbytes")
    settings = BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=request.param
    )
    with packs_weights(monkeypatch):
        yield AutoModelForCausalLM.from_pretrained(folder, quantization_config=settings, dtype=torch.float32).eval()


def unpacked(base: PreTrainedModel) -> PreTrainedModel:
    """The same base on another CPU."""
    model = copy.deepcopy(base)
    for layer in quantized_layers(model):
        layer.support_avx512bf16_for_cpu = False
    return model


def quantized_layers(model: nn.Module) -> list[nn.Module]:
    return [module for module in model.modules() if type(module).__name__ == "Linear4bit"]


def num_packed(model: PreTrainedModel) -> int:
    return sum(map(is_packed, model.modules()))


def assert_near(found: torch.Tensor, expected: torch.Tensor) -> None:
    """But for bfloat16, in which packed weights and their scales are."""
    assert 0 < (found - expected).abs().max() < 0.05 * expected.abs().max()


def test_packing(base: PreTrainedModel) -> None:
    """A call packs all layers, which compute the same in bfloat16; what is asked of a layer stays the same."""
    asked = [features, has_dense_weight, device_and_dtype]
    layers = [ffn.module.get_submodule(name) for ffn in find_ffns(base) for name in ffn.projections]
    before, expected = [[ask(layer) for ask in asked] for layer in layers], logits(unpacked(base), ids())
    assert num_packed(base) == 0
    assert_near(logits(base, ids()), expected)
    assert num_packed(base) == 4 * 7
    assert [[ask(layer) for ask in asked] for layer in layers] == before
    assert fingerprint(base) is None and len(find_ffns(base)) == 4


def test_packed_weights_are_unpacked(base: PreTrainedModel) -> None:
    """To the same numbers; their scales were rounded when they were packed."""
    plain = unpacked(base)
    logits(base, ids())
    changed = keep_unpacked(base)
    assert num_packed(base) == 0 and len(changed) == 4 * 7
    for layer, expected in zip(changed, quantized_layers(plain), strict=True):
        assert layer.weight.shape == expected.weight.shape and layer.weight.equal(expected.weight)
        found, weight = dequantize_module_weight(layer), dequantize_module_weight(expected)
        assert found.dtype == weight.dtype
        torch.testing.assert_close(found, weight, rtol=0.02, atol=0)
    assert logits(base, ids()).equal(logits(base, ids())) and num_packed(base) == 0
    allow_packing(changed)
    logits(base, ids())
    assert num_packed(base) == 4 * 7


def test_detection_is_that_of_another_cpu(base: PreTrainedModel) -> None:
    """And the base may pack afterwards, as before."""
    expected = detect(unpacked(base), make_tokenizer(), SENTENCES, PAIRS)
    assert detect(base, make_tokenizer(), SENTENCES, PAIRS) == expected
    assert num_packed(base) == 0
    logits(base, ids())
    assert num_packed(base) == 4 * 7
    found = detect(base, make_tokenizer(), SENTENCES, PAIRS)
    for ours, theirs in zip(found.neurons, expected.neurons, strict=True):
        torch.testing.assert_close(ours.mean_abs_activation, theirs.mean_abs_activation, rtol=0.05, atol=0.01)
        assert (ours.owner == theirs.owner).float().mean() > 0.8, "0.52 by chance"


def test_training_goes_on_after_evaluation(base: PreTrainedModel) -> None:
    """Gradients and logits are those of another CPU, also after calls in evaluation mode and a saved state."""
    models = [adapt(unpacked(base), general_rank=None), adapt(base, general_rank=None)]
    for model in models:
        logits(model, ids())
        model.state_dict()
        model.train()(input_ids=ids(), labels=ids()).loss.backward()
    theirs, ours = ([weight.grad for weight in model.parameters() if weight.requires_grad] for model in models)
    assert len(ours) == 4 * 3
    for expected, gradient in zip(theirs, ours, strict=True):
        assert gradient.equal(expected)
    assert logits(models[1].eval(), ids()).equal(logits(models[0].eval(), ids()))


def test_an_adapter_is_loaded_and_saved_on_a_base_that_was_called(base: PreTrainedModel, tmp_path: Path) -> None:
    trained = adapt(unpacked(base), general_rank=None)
    trained.save_pretrained(tmp_path / "first")
    expected = logits(trained, ids())
    logits(base, ids())
    model = PeftModel.from_pretrained(base, tmp_path / "first").eval()
    found = logits(model, ids())
    assert_near(found, expected)
    model.save_pretrained(tmp_path / "second")
    assert logits(model, ids()).equal(found)
    first, second = (tmp_path / name / "adapter_model.safetensors" for name in ("first", "second"))
    assert first.read_bytes() == second.read_bytes()
