"""Bases of other kinds: quantized, offloaded, shared, split, with experts, with adapters of another method."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.utils.integrations import dequantize_module_weight
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    BloomConfig,
    BloomForCausalLM,
    LlavaConfig,
    LlavaForConditionalGeneration,
    MixtralConfig,
    MixtralForCausalLM,
)
from transformers import logging as transformers_logging

from peft_landermt import LsloConfig
from peft_landermt.errors import ArchitectureError, ConfigError

from ..conftest import DECODER_SIZES, PAIRS, build_model
from ..tuner.helpers import cloned_state, ids, logits, same_state
from ..tuner.test_quantized import BACKENDS, Packed
from .helpers import adapt, build, layers_of, make_config, parameters

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning", "ignore::DeprecationWarning")
ROUNDED_INPUTS = ("bitsandbytes 8-bit",)


def quantized(backend: str, folder: Path) -> nn.Module:
    base = build_model("llama", hidden_size=64, intermediate_size=128)
    if backend == "packed":
        for name, module in list(base.named_modules()):
            if isinstance(module, nn.Linear) and ".layers." in name:
                base.set_submodule(name, Packed(module))
        return base
    base.save_pretrained(folder)
    transformers_logging.disable_progress_bar()
    return AutoModelForCausalLM.from_pretrained(folder, quantization_config=BACKENDS[backend]()).eval()


QUICK = ("packed", "bitsandbytes 4-bit")


@pytest.mark.parametrize(
    "backend", [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in BACKENDS]
)
def test_quantized_bases(backend: str, tmp_path: Path) -> None:
    """As over the dequantized weights; training moves factors only; merging into them is refused."""
    base = quantized(backend, tmp_path / "base")
    plain = copy.deepcopy(base) if backend == "packed" else quantized(backend, tmp_path / "base")
    for name, module in list(plain.named_modules()):
        if hasattr(module, "in_features") and ".layers." in name:
            weight = module.dequantized() if backend == "packed" else dequantize_module_weight(module)
            dense = nn.Linear(module.in_features, module.out_features, bias=False)
            dense.weight.data = weight.detach().view_as(dense.weight).to(plain.dtype, copy=True)
            plain.set_submodule(name, dense)
    model = adapt(base, PAIRS)
    dense = adapt(plain, PAIRS, verify_base=False)
    dense.load_state_dict({key: value for key, value in model.state_dict().items() if ".lslo_" in key}, strict=False)
    found, expected = (logits(each, ids(), language_pairs=PAIRS).float() for each in (model, dense))
    if backend not in ROUNDED_INPUTS:
        torch.testing.assert_close(found, expected, rtol=2e-2, atol=2e-2)
    model.train()(input_ids=ids(), labels=ids(), language_pairs=PAIRS).loss.backward()
    assert all(weight.grad is not None for name, weight in parameters(model).items() if ".en_" not in name)
    model.set_language_pair("en-de")
    with pytest.raises(ArchitectureError, match="quantized"):
        model.merge_adapter()
    model.save_pretrained(tmp_path / "adapter")
    loaded = PeftModel.from_pretrained(quantized(backend, tmp_path / "base"), str(tmp_path / "adapter"))
    torch.testing.assert_close(logits(loaded, ids(), language_pairs=PAIRS).float(), found, rtol=1e-3, atol=1e-3)


def test_offloaded_bases(tmp_path: Path) -> None:
    base = build("llama")
    base.save_pretrained(tmp_path / "base")
    expected = logits(adapt(base, PAIRS), ids(), language_pairs=PAIRS)
    device_map = {"model.embed_tokens": "cpu", "model.layers.0": "cpu", "model.layers.1": "cpu",
        "model.layers.2": "disk", "model.layers.3": "disk", "model.norm": "cpu", "model.rotary_emb": "cpu",
        "lm_head": "cpu"}  # fmt: skip
    offloaded = AutoModelForCausalLM.from_pretrained(
        tmp_path / "base", device_map=device_map, offload_folder=tmp_path / "offload"
    )
    model = adapt(offloaded.eval(), PAIRS)
    torch.testing.assert_close(logits(model, ids(), language_pairs=PAIRS), expected)


def share_a_projection(base: Any) -> None:
    base.model.layers[2].mlp.up_proj = base.model.layers[1].mlp.up_proj


def share_a_layer(base: Any) -> None:
    base.model.layers[2] = base.model.layers[1]


@pytest.mark.parametrize("share", [share_a_projection, share_a_layer])
def test_linear_layers_at_several_places_are_refused(share: Any) -> None:
    base = build("llama")
    share(base)
    before = cloned_state(base)
    with pytest.raises(ArchitectureError, match="is one linear layer at 2 places"):
        adapt(base)
    assert same_state(base.state_dict(), before) and not layers_of(base)
    assert adapt(base, target_modules=[f"model.layers.{layer}.mlp.down_proj" for layer in (0, 3)])


def test_tied_weights_are_not_merged() -> None:
    base = build("llama")
    base.model.layers[2].mlp.up_proj.weight = base.model.layers[1].mlp.up_proj.weight
    model = adapt(base, ["en-de"])
    before = cloned_state(model)
    with pytest.raises(ArchitectureError, match="tied weight"):
        model.merge_adapter()
    assert same_state(model.state_dict(), before)


def test_a_base_that_reads_weights_without_calling_layers_is_refused() -> None:
    config = BloomConfig(vocab_size=114, hidden_size=32, n_layer=2, n_head=4, slow_but_exact=True, pretraining_tp=2)
    with pytest.raises(ArchitectureError, match="slow_but_exact=False"):
        adapt(BloomForCausalLM(config))
    assert adapt(BloomForCausalLM(config), target_modules=["query_key_value"])


def test_experts_are_left_out_and_refused_by_name() -> None:
    config = MixtralConfig(**DECODER_SIZES, num_local_experts=2, num_experts_per_tok=1)
    model = adapt(MixtralForCausalLM(config).eval(), PAIRS)
    names = list(layers_of(model))
    assert names and not any(".experts" in name for name in names)
    together = logits(model, ids(), language_pairs=PAIRS)
    for row, pair in enumerate(PAIRS):
        alone = logits(model, ids()[row : row + 1], language_pairs=[pair])
        torch.testing.assert_close(alone, together[row : row + 1], rtol=1e-4, atol=1e-4)


def test_of_a_multimodal_model_the_language_model_is_adapted() -> None:
    vision = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2,
        "image_size": 16, "patch_size": 8, "model_type": "clip_vision_model"}  # fmt: skip
    text = {**DECODER_SIZES, "model_type": "llama"}
    base = LlavaForConditionalGeneration(LlavaConfig(vision_config=vision, text_config=text)).eval()
    names = list(layers_of(adapt(base, PAIRS)))
    assert len(names) == 28 and all("language_model" in name for name in names)


def test_adapters_of_another_method_are_refused() -> None:
    lora = get_peft_model(build("llama"), LoraConfig(task_type="CAUSAL_LM", target_modules=["q_proj"]))
    with pytest.raises(ArchitectureError, match="adapters of another method"):
        adapt(lora.get_base_model())


TARGETS: dict[str, tuple[dict[str, Any], type[Exception], str]] = {
    "the head": ({"target_modules": ["lm_head"]}, ArchitectureError, "lies in no numbered layer"),
    "an FFN": ({"target_modules": ["mlp"]}, ArchitectureError, "is a LlamaMLP"),
    "nothing": ({"target_modules": ["no_such"]}, ValueError, "not found|No modules were targeted"),
    "a rank too large": ({"rank": {"en": 1, "de": 33, "fr": 1}}, ConfigError, "larger than the sizes"),
    "words for too few layers": ({"index": ["target"] * 3}, ConfigError, "the model has"),
    "two stacks": ({"index": {"encoder": ["source"], "decoder": ["target"]}}, ConfigError, "the model has"),
    "what is adapted, saved": ({"modules_to_save": ["q_proj"]}, ConfigError, "modules_to_save"),
}


@pytest.mark.parametrize("target", TARGETS)
def test_wrong_targets_leave_the_base_as_it_was(target: str) -> None:
    options, error, message = TARGETS[target]
    base = build("llama")
    before = cloned_state(base)
    with pytest.raises(error, match=message):
        get_peft_model(base, make_config(base, PAIRS, **options))
    assert same_state(base.state_dict(), before) and not layers_of(base)


CHOSEN: dict[str, tuple[dict[str, Any], int]] = {
    "all": ({}, 28),
    "all-linear": ({"target_modules": "all-linear"}, 28),
    "without the FFN": ({"exclude_modules": ["gate_proj", "up_proj", "down_proj"]}, 16),
    "two layers": ({"layers_to_transform": [0, 2]}, 14),
    "a pattern": ({"target_modules": r".*\.[12]\.mlp\.\w+_proj"}, 6),
}


@pytest.mark.parametrize("kind", CHOSEN)
def test_what_is_adapted(kind: str, tmp_path: Path) -> None:
    options, count = CHOSEN[kind]
    base = build("llama")
    config = make_config(base, PAIRS, **options)
    model = get_peft_model(base, config)
    assert len(layers_of(model)) == count
    model.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(build("llama"), str(tmp_path))
    assert [*layers_of(loaded)] == [*layers_of(model)]
    assert isinstance(loaded.peft_config["default"], LsloConfig)


CONFIGS: dict[str, dict[str, Any]] = {
    "rank zero": {"rank": 0},
    "ranks of some": {"rank": {"en": 1}},
    "a rank of no language": {"rank": {"en": 1, "de": 1, "fr": 1, "it": 1}},
    "a fraction": {"rank": 1.5},
    "an unknown word": {"index": "both"},
    "an unknown word in a list": {"index": ["source", "none"]},
    "one stack": {"index": {"encoder": ["source"]}},
    "no scaling": {"scaling": 0.0},
    "scaling in words": {"scaling": "1"},
    "dropout of all": {"dropout": 1.0},
    "an unknown init": {"init_weights": "gaussian"},
    "an unknown field": {"lora_alpha": 8},
    "no languages": {"languages": []},
    "a strange language": {"languages": ["it"]},
}


@pytest.mark.parametrize("kind", CONFIGS)
def test_wrong_configs(kind: str) -> None:
    with pytest.raises(ConfigError):
        LsloConfig(**{"language_pairs": PAIRS, **CONFIGS[kind]})
