"""Multimodal checkpoints: only the FFNs of their language model are found, detected on and adapted."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from peft import PeftModel, get_peft_model
from transformers import PreTrainedModel, PreTrainedTokenizerFast, TrainingArguments

from peft_landermt import LanderConfig, LanderTrainer, detect_neurons, translate
from peft_landermt.errors import ArchitectureError
from peft_landermt.ffn import FFNLayout, find_ffns, list_ffns

from .conftest import SENTENCES, VOCABULARY
from .versions import TRANSFORMERS_4

GATED = FFNLayout(("gate_proj", "up_proj"), "down_proj")

# by the module names in transformers' own code: where the language model is, and what its FFNs are called
CLASSES = {
    "Gemma3ForConditionalGeneration": "model.language_model.layers.N.mlp",
    "Mistral3ForConditionalGeneration": "model.language_model.layers.N.mlp",
    "LlavaForConditionalGeneration": "model.language_model.layers.N.mlp",
    "LlavaOnevisionForConditionalGeneration": "model.language_model.layers.N.mlp",
    "Qwen2VLForConditionalGeneration": "model.language_model.layers.N.mlp",
    "Qwen2_5_VLForConditionalGeneration": "model.language_model.layers.N.mlp",
    "PaliGemmaForConditionalGeneration": "model.language_model.layers.N.mlp",
    "Idefics2ForConditionalGeneration": "model.text_model.layers.N.mlp",  # its connector has gate, up and down, too
    "Idefics3ForConditionalGeneration": "model.text_model.layers.N.mlp",
    "SmolVLMForConditionalGeneration": "model.text_model.layers.N.mlp",
    "InternVLForConditionalGeneration": "model.language_model.layers.N.mlp",
    "Cohere2VisionForConditionalGeneration": "model.language_model.layers.N.mlp",
    "MllamaForConditionalGeneration": "model.language_model.layers.N.mlp",
    "Blip2ForConditionalGeneration": "language_model.model.decoder.layers.N",
    "Kosmos2ForConditionalGeneration": "text_model.model.layers.N.ffn",
    "Phi4MultimodalForCausalLM": "model.layers.N.mlp",  # towers inside the language model
    "VoxtralForConditionalGeneration": "model.language_model.layers.N.mlp",
    "Qwen2AudioForConditionalGeneration": "model.language_model.layers.N.mlp",
    "GraniteSpeechForConditionalGeneration": "model.language_model.layers.N.mlp",
}


def shrink(config: Any) -> Any:
    text = config.get_text_config()
    text.num_hidden_layers = 2
    if getattr(text, "layer_types", None):
        text.layer_types = text.layer_types[:2]
    return config


def needs_5(name: str) -> Any:
    """A class that transformers 4 lacks, or cannot make of its default config, or has under other names."""
    return pytest.param(name, marks=pytest.mark.skipif(TRANSFORMERS_4, reason="needs transformers 5"))


NEWER = ("MllamaForConditionalGeneration", "VoxtralForConditionalGeneration")


@pytest.mark.parametrize("name", [needs_5(name) if name in NEWER else name for name in CLASSES])
def test_ffns_are_those_of_the_language_model(name: str) -> None:
    kind = getattr(transformers, name)
    with torch.device("meta"):
        model = kind(shrink(kind.config_class()))
    expected = [CLASSES[name].replace("N", str(layer)) for layer in range(2)]
    found = find_ffns(model)
    assert [ffn.name for ffn in found] == expected
    assert [ffn.name for ffn in list_ffns(model, found[0].layout)] == expected


@pytest.mark.parametrize(
    ("name", "stacks"),
    [
        ("T5GemmaForConditionalGeneration", ["model.encoder.layers", "model.decoder.layers"]),
        ("T5Gemma2ForConditionalGeneration", ["model.encoder.text_model.layers", "model.decoder.layers"]),
        (
            "Florence2ForConditionalGeneration",
            ["model.language_model.encoder.layers", "model.language_model.decoder.layers"],
        ),
    ],
)
def test_both_stacks_of_an_encoder_decoder(name: str, stacks: list[str]) -> None:
    if not hasattr(transformers, name):
        pytest.skip(f"this transformers has no {name}")
    kind = getattr(transformers, name)
    with torch.device("meta"):
        model = kind(kind.config_class())
    found = [re.sub(r"\.\d+(\.mlp)?$", "", ffn.name) for ffn in find_ffns(model)]
    assert list(dict.fromkeys(found)) == stacks


@pytest.mark.parametrize(
    "name",
    map(needs_5, ["Qwen3VLMoeForConditionalGeneration", "Qwen3OmniMoeThinkerForConditionalGeneration"]),
)
def test_experts_of_the_language_model_are_refused(name: str) -> None:
    kind = getattr(transformers, name)
    with torch.device("meta"):
        model = kind(shrink(kind.config_class()))
    with pytest.raises(ArchitectureError, match=r"model.*is a mixture of experts"):
        find_ffns(model)


TEXT = {
    "vocab_size": VOCABULARY, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
VISION = {
    "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "image_size": 28,
    "patch_size": 14,
}  # fmt: skip


def tiny(name: str) -> PreTrainedModel:
    torch.manual_seed(0)
    if name == "gemma3":
        config: Any = transformers.Gemma3Config(
            text_config={**TEXT, "head_dim": 8},
            vision_config={"model_type": "siglip_vision_model", **VISION},
            mm_tokens_per_image=4,
        )
        # what landermt loads a Gemma 3 4B with
        return transformers.AutoModelForCausalLM.from_config(config).eval()
    if name == "mistral3":
        config = transformers.Mistral3Config(
            text_config={"model_type": "mistral", "head_dim": 8, **TEXT},
            vision_config={"model_type": "pixtral", **VISION},
        )
        return transformers.Mistral3ForConditionalGeneration(config).eval()
    rope = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [1, 1, 2]}
    vision = {
        "depth": 2, "hidden_size": 32, "intermediate_size": 64, "num_heads": 4, "out_hidden_size": 32,
        "patch_size": 14, "fullatt_block_indexes": [1],
    }  # fmt: skip
    text = {**TEXT, "rope_scaling" if TRANSFORMERS_4 else "rope_parameters": rope}
    config = transformers.Qwen2_5_VLConfig(text_config=text, vision_config=vision)
    return transformers.Qwen2_5_VLForConditionalGeneration(config).eval()


ATTENTION = {f"model.language_model.layers.{layer}.self_attn" for layer in range(2)}
"""That of the language model."""


def adapted(model: torch.nn.Module) -> set[str]:
    """The FFNs and attention modules that hold trainable weights."""
    names = [name for name, weight in model.named_parameters() if weight.requires_grad]
    return {re.sub(r"^base_model\.model\.|(?<=\.mlp)\..*|(?<=\.self_attn)\..*", "", name) for name in names}


@pytest.mark.parametrize("layout", [None, GATED], ids=["recognised", "named"])
@pytest.mark.parametrize("name", ["gemma3", "mistral3", "qwen2_5_vl"])
def test_detection_training_and_loading(
    name: str, layout: FFNLayout | None, tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    base = tiny(name)
    expected = [f"model.language_model.layers.{layer}.mlp" for layer in range(2)]
    found = detect_neurons(
        base, tokenizer, SENTENCES, ["en-de"], num_layers=1, progress=False,
        ffn_layout=layout and layout.to_dict(),
    )  # fmt: skip
    assert found.num_layers == 2
    model = get_peft_model(base, LanderConfig(task_type="CAUSAL_LM", neuron_map=found))
    assert adapted(model) == {expected[found.layers("en-de")[0]], *ATTENTION}
    rows = [
        {"source": en, "target": de, "language_pair": "en-de"}
        for en, de in zip(SENTENCES["en"], SENTENCES["de"], strict=True)
    ]
    arguments = TrainingArguments(str(tmp_path), max_steps=2, report_to=[], use_cpu=True, save_strategy="no")
    LanderTrainer(model=model, args=arguments, train_dataset=rows, processing_class=tokenizer).train()
    model.save_pretrained(str(tmp_path / "adapter"))
    again = PeftModel.from_pretrained(tiny(name), str(tmp_path / "adapter"))
    given = (SENTENCES["en"], "en-de")
    assert translate(again, tokenizer, *given, max_new_tokens=4) == translate(
        model, tokenizer, *given, max_new_tokens=4
    )


@pytest.mark.parametrize("name", ["gemma3", "mistral3", "qwen2_5_vl"])
def test_without_a_map_no_tower_is_adapted(name: str) -> None:
    model = get_peft_model(tiny(name), LanderConfig(task_type="CAUSAL_LM", general_rank=4))
    assert adapted(model) == {f"model.language_model.layers.{layer}.mlp" for layer in range(2)} | ATTENTION
