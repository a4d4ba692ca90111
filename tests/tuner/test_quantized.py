"""Quantized bases: deltas are added beside weights that stay as they are.

GPTQ and AWQ layers run only with a package that needs a newer torch; a stand-in has their form: packed buffers, and
no `weight`.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from peft import PeftModel, prepare_model_for_kbit_training
from peft.utils.integrations import dequantize_module_weight
from safetensors.torch import load_file
from torch import nn
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, PreTrainedModel, TorchAoConfig
from transformers import logging as transformers_logging

from peft_landermt import NeuronMap, detect_neurons
from peft_landermt.errors import ArchitectureError
from peft_landermt.ffn import find_ffns
from peft_landermt.fingerprint import fingerprint
from peft_landermt.linear import device_and_dtype

from ..conftest import PAIRS, SENTENCES, build_model, make_tokenizer
from ..versions import TRANSFORMERS_4
from .helpers import adapt, ids, lander_layers, logits, recorded_calls
from .packing import packs_weights

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning", "ignore::DeprecationWarning")
WEIGHTS = "adapter_model.safetensors"


class Packed(nn.Module):
    """int8 values and a scale per row in buffers, as GPTQ and AWQ layers have them: no parameter, no `weight`."""

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__()
        self.in_features, self.out_features = layer.in_features, layer.out_features
        weight = layer.weight.detach()
        scales = weight.abs().amax(dim=1, keepdim=True) / 127
        self.register_buffer("scales", scales)
        self.register_buffer("qweight", (weight / scales).round().to(torch.int8))
        self.register_buffer("bias", None if layer.bias is None else layer.bias.detach())

    def dequantized(self) -> torch.Tensor:
        return self.qweight * self.scales

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        return F.linear(states, self.dequantized().to(states.dtype), self.bias)


def _bitsandbytes(**options: Any) -> BitsAndBytesConfig:
    pytest.importorskip("bitsandbytes")
    return BitsAndBytesConfig(**options)


def _torchao(name: str, **options: Any) -> TorchAoConfig:
    quantization = pytest.importorskip("torchao.quantization")
    if "group_size" in options:
        options["granularity"] = quantization.PerGroup(options.pop("group_size"))
    return TorchAoConfig(getattr(quantization, name)(**options))


BACKENDS: dict[str, Callable[[], Any]] = {
    "bitsandbytes 4-bit": lambda: _bitsandbytes(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.float32,
    ),
    "bitsandbytes 4-bit, avx512_bf16": lambda: _bitsandbytes(load_in_4bit=True, bnb_4bit_quant_type="nf4"),
    "bitsandbytes 8-bit": lambda: _bitsandbytes(load_in_8bit=True),
    "torchao int8": lambda: _torchao("Int8WeightOnlyConfig"),
    "torchao int4": lambda: _torchao("IntxWeightOnlyConfig", weight_dtype=torch.int4, group_size=32),
    "torchao float8": lambda: _torchao("Float8WeightOnlyConfig"),
    "packed": lambda: None,
}
ROUNDED_INPUTS = ("bitsandbytes 8-bit",)
"""Backends that quantize the input too, so that products differ from those of the dequantized weight."""


@pytest.fixture(params=BACKENDS)
def backend(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    with packs_weights(monkeypatch) if request.param.endswith("avx512_bf16") else nullcontext():
        yield request.param


@pytest.fixture
def architecture(request: pytest.FixtureRequest) -> str:
    return getattr(request, "param", "llama")


@cache
def wide(architecture: str) -> tuple[PreTrainedModel, NeuronMap]:
    """A base whose widths are whole blocks of quantized numbers, and what detection finds on it."""
    sizes = {"hidden_size": 64} if architecture == "bloom" else {"hidden_size": 64, "intermediate_size": 128}
    model = build_model(architecture, **sizes)
    return model, detect(model)


def detect(model: PreTrainedModel) -> NeuronMap:
    options = {"num_layers": 2, "general_ratio": 0.7, "progress": False}
    return detect_neurons(model, make_tokenizer(), SENTENCES, PAIRS, **options)


@pytest.fixture
def base(architecture: str) -> PreTrainedModel:
    return copy.deepcopy(wide(architecture)[0])


@pytest.fixture
def neuron_map(architecture: str) -> NeuronMap:
    return wide(architecture)[1]


@pytest.fixture
def quantize(backend: str, tmp_path: Path) -> Callable[..., PreTrainedModel]:
    """Quantizes a float model."""

    def make(base: PreTrainedModel, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
        settings = BACKENDS[backend]()
        if settings is None:
            model = copy.deepcopy(base).to(dtype)
            for ffn in find_ffns(model):
                for name in ffn.projections:
                    setattr(ffn.module, name, Packed(ffn.module.get_submodule(name)))
            return model
        transformers_logging.disable_progress_bar()
        base.save_pretrained(tmp_path / "base")
        return AutoModelForCausalLM.from_pretrained(
            tmp_path / "base", quantization_config=settings, dtype=dtype
        ).eval()

    return make


@pytest.fixture
def quantized(base: PreTrainedModel, quantize: Callable[..., PreTrainedModel]) -> PreTrainedModel:
    return quantize(base)


def dequantized(base: PreTrainedModel, quantized: PreTrainedModel) -> PreTrainedModel:
    """The float model whose FFNs have the dequantized weights."""
    model = copy.deepcopy(base)
    for ours, theirs in zip(find_ffns(model), find_ffns(quantized), strict=True):
        for name in ours.projections:
            layer = theirs.module.get_submodule(name)
            if isinstance(layer, Packed):
                weight = layer.dequantized()
            elif "torchao" in type(layer.weight).__module__:
                weight = layer.weight.dequantize()
            else:
                weight = dequantize_module_weight(layer)
            ours.module.get_submodule(name).weight.data = weight.float()
    return model


def storage(model: nn.Module) -> dict[str, tuple[int, type, torch.dtype, torch.Tensor]]:
    """Identity, kind, type and a copy of everything a base model holds."""
    tensors = (*model.named_parameters(), *model.named_buffers())
    return {
        name.replace("base_model.model.", "").replace(".base_layer", ""): (
            id(tensor),
            type(tensor),
            tensor.dtype,
            copy.deepcopy(tensor.detach()),
        )
        for name, tensor in tensors
        if ".lander_" not in name
    }


def assert_same_storage(model: nn.Module, before: dict[str, tuple[int, type, torch.dtype, torch.Tensor]]) -> None:
    after = storage(model)
    assert after.keys() == before.keys()
    for name, (*kind, values) in before.items():
        assert after[name][:3] == tuple(kind), name
        assert _numbers(after[name][3]).equal(_numbers(values)), name


def _numbers(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.dequantize() if "torchao" in type(tensor).__module__ else tensor


PAPER = {"car": "paper", "inactive_neurons": "drop", "general_rank": None}


@pytest.mark.parametrize(
    ("architecture", "options"),
    [("llama", {}), ("llama", {"general_rank": None}), ("llama", PAPER), ("bloom", PAPER)],
    ids=["defaults", "rows", "paper", "paper on BLOOM"],
    indirect=["architecture"],
)
def test_ffns_compute_what_dequantized_ones_do(
    backend: str,
    base: PreTrainedModel,
    quantized: PreTrainedModel,
    neuron_map: NeuronMap,
    options: dict[str, Any],
    tmp_path: Path,
) -> None:
    """On the same inputs, for a batch of three pairs; the adapter is loaded from a file into the float model."""
    expected_base = dequantized(base, quantized)
    model = adapt(quantized, neuron_map, PAIRS, verify_base=False, **options)
    model.save_pretrained(tmp_path / "adapter")
    reference = PeftModel.from_pretrained(expected_base, tmp_path / "adapter").eval()
    with recorded_calls(model) as calls:
        logits(model, ids(), language_pairs=PAIRS)
    for name, layer in lander_layers(reference).items():
        layer.register_forward_pre_hook(lambda _module, args, name=name: (calls[name][0], calls[name][1])[: len(args)])
    with recorded_calls(reference) as expected:
        logits(reference, ids(), language_pairs=PAIRS)
    with recorded_calls(reference) as plain, reference.disable_adapter():
        logits(reference, ids())
    for name, (_, _, output) in calls.items():
        scale = expected[name][2].abs().max()
        allowed = 0.03 if backend in ROUNDED_INPUTS else 1e-5
        assert (output - expected[name][2]).abs().max() < allowed * scale, name
        assert (output - plain[name][2]).abs().max() > 0.1 * scale, "the adapter matters"


def test_training_leaves_the_base_quantized(
    backend: str, quantized: PreTrainedModel, neuron_map: NeuronMap, tmp_path: Path
) -> None:
    base = quantized
    if backend != "packed":
        base = prepare_model_for_kbit_training(quantized)
        refused = TRANSFORMERS_4 and backend.startswith("torchao")
        accepted = backend != "torchao int4" and not refused
        assert base.hf_quantizer.is_trainable == accepted, "what transformers' Trainer accepts"
    before = storage(base)
    model = adapt(base, neuron_map, PAIRS, seed=None).train()
    trainable = [weight for weight in model.parameters() if weight.requires_grad]
    assert {weight.dtype for weight in trainable} == {torch.float32}
    optimizer = torch.optim.AdamW(trainable, lr=0.01)
    losses = []
    for _ in range(3):
        loss = model(input_ids=ids(), labels=ids(), language_pairs=PAIRS).loss
        loss.backward()
        assert all(weight.grad is not None for weight in trainable)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    model.save_pretrained(tmp_path / "adapter")
    assert_same_storage(model, before)
    saved = load_file(tmp_path / "adapter" / WEIGHTS)
    assert {value.dtype for value in saved.values()} <= {torch.float32, torch.int32}
    assert all(".lander_blocks." in key for key in saved), "nothing of the base is in the file"


def test_adapters_go_from_float_to_quantized_bases_and_back(
    base: PreTrainedModel, quantized: PreTrainedModel, neuron_map: NeuronMap, tmp_path: Path
) -> None:
    """A quantized base has no fingerprint, so neither direction is checked; every tensor arrives as it was."""
    assert fingerprint(quantized) is None
    trained = adapt(copy.deepcopy(base), neuron_map, PAIRS)
    assert trained.peft_config["default"].base_fingerprint == fingerprint(base)
    trained.save_pretrained(tmp_path / "float")
    loaded = PeftModel.from_pretrained(quantized, tmp_path / "float").eval()
    loaded.save_pretrained(tmp_path / "quantized")
    back = PeftModel.from_pretrained(copy.deepcopy(base), tmp_path / "quantized").eval()
    assert logits(back, ids(), language_pairs=PAIRS).equal(logits(trained, ids(), language_pairs=PAIRS))
    with loaded.disable_adapter():
        plain = logits(loaded, ids())
    assert (logits(loaded, ids(), language_pairs=PAIRS) - plain).abs().max() > 0.1


@pytest.mark.parametrize("merge", ["merge_adapter", "merge_and_unload"])
def test_merging_is_refused_before_anything_changes(quantized: PreTrainedModel, merge: str) -> None:
    model = adapt(quantized)
    before, output = storage(model), logits(model, ids())
    with pytest.raises(ArchitectureError, match=r"gate_proj is quantized, .* merge into an unquantized base"):
        getattr(model, merge)()
    assert_same_storage(model, before)
    assert logits(model, ids()).equal(output)


def test_detection(base: PreTrainedModel, quantized: PreTrainedModel, neuron_map: NeuronMap) -> None:
    """The map of a quantized base differs from the float base's only as much as the weights do, and fits both."""
    before = storage(quantized)
    found = detect(quantized)
    assert_same_storage(quantized, before)
    assert found.fingerprint is None
    same = [ours.owner == theirs.owner for ours, theirs in zip(found.neurons, neuron_map.neurons, strict=True)]
    assert torch.cat(same).float().mean() > 0.75, "0.82 to 0.98 measured; 0.52 by chance"
    for model in (quantized, base):
        assert logits(adapt(model, found, PAIRS), ids(), language_pairs=PAIRS).isfinite().all()


def test_half_precision(
    backend: str,
    base: PreTrainedModel,
    quantize: Callable[..., PreTrainedModel],
    neuron_map: NeuronMap,
    tmp_path: Path,
) -> None:
    """Adapters stay in float32; a file has the type that quantized weights stand for, float32 where they name none."""
    model = adapt(quantize(base, torch.bfloat16), neuron_map, PAIRS)
    assert {weight.dtype for weight in model.parameters() if weight.requires_grad} == {torch.float32}
    assert logits(model, ids(), language_pairs=PAIRS).dtype == torch.bfloat16
    model.save_pretrained(tmp_path / "adapter")
    saved = load_file(tmp_path / "adapter" / WEIGHTS)
    named = torch.bfloat16 if backend.startswith("torchao") else torch.float32
    assert {value.dtype for key, value in saved.items() if key.rpartition(".")[2].startswith("general_gate")} == {
        named
    }


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.int8, torch.uint8])
def test_adapters_never_take_a_storage_type(dtype: torch.dtype) -> None:
    layer = nn.Linear(4, 8)
    layer.weight = nn.Parameter(layer.weight.detach().to(dtype), requires_grad=False)
    assert device_and_dtype(layer) == (torch.device("cpu"), torch.float32)
