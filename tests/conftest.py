"""Tiny models of the real architectures, a character tokenizer, and a neuron map made by real detection."""

from __future__ import annotations

import copy
import os
from collections.abc import Callable, Iterator
from typing import Any

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch: threads that wait for each other are slow on tiny models

import torch
from tokenizers import Regex, Tokenizer, models, pre_tokenizers, processors
from transformers import (
    BloomConfig,
    BloomForCausalLM,
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    OPTConfig,
    OPTForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
)

import peft_landermt  # noqa: F401  registers LANDER
from peft_landermt import NeuronMap, detect_neurons
from peft_landermt.translation import requests
from peft_landermt.translation.limits import usual_limit

from .repeats import mark_repeats

SENTENCES = {
    "en": ["The house is old.", "We drink tea.", "Where is the station?", "It rained all night."],
    "de": ["Das Haus ist alt.", "Wir trinken Tee.", "Wo ist der Bahnhof?", "Es regnete die ganze Nacht."],
    "fr": ["La maison est vieille.", "Nous buvons du thé.", "Où est la gare ?", "Il a plu toute la nuit."],
}
PAIRS = ["en-de", "de-en", "en-fr"]
ARCHITECTURES = ("llama", "bloom", "gemma3")
"""A gated FFN and a plain one; Gemma 3 has the form of Llama and runs with the slow tests."""
_ALPHABET = "".join(chr(code) for code in range(32, 127)) + "\näöüßéèàùâêîôûçœ"
VOCABULARY = 3 + len(_ALPHABET)


_TOKENS = {"vocab_size": VOCABULARY, "hidden_size": 32, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
DECODER_SIZES = {
    **_TOKENS,
    "intermediate_size": 64,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    # larger than usual, so that FFNs matter in a model this small
    "initializer_range": 0.2,
}
"""Options that most decoder configs of transformers share."""


class Quantized(torch.nn.Module):
    """Integer weights, and features as every quantized linear layer has them."""

    def __init__(self, inside: int, outside: int) -> None:
        super().__init__()
        self.in_features, self.out_features = inside, outside
        self.register_buffer("weight", torch.ones(outside, inside, dtype=torch.int8))


def build_model(architecture: str, seed: int = 0, **overrides: Any) -> PreTrainedModel:
    """A random model with 4 layers, d = 32 and p = 64, in evaluation mode, dropout off."""
    torch.manual_seed(seed)
    if architecture == "llama":
        model = LlamaForCausalLM(LlamaConfig(**{**DECODER_SIZES, **overrides}))
    elif architecture == "gemma3":
        model = Gemma3ForCausalLM(
            Gemma3TextConfig(**{**DECODER_SIZES, "head_dim": 8, "sliding_window": 64, **overrides})
        )
    elif architecture == "bloom":
        settings = {**_TOKENS, "n_layer": 4, "n_head": 4, "initializer_range": 0.2, **overrides}
        model = BloomForCausalLM(BloomConfig(**settings))
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):
                torch.nn.init.normal_(parameter, std=0.2)
    elif architecture == "qwen2":
        model = Qwen2ForCausalLM(Qwen2Config(**{**DECODER_SIZES, **overrides}))
    elif architecture == "gpt2":
        settings = {"n_embd": 32, "n_inner": 64, "n_layer": 4, "n_head": 4, "n_positions": 256}
        dropout = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
        tokens = {key: value for key, value in _TOKENS.items() if key != "hidden_size"}
        model = GPT2LMHeadModel(GPT2Config(**{**settings, **dropout, **tokens, "initializer_range": 0.2, **overrides}))
    elif architecture == "opt":
        settings = {**DECODER_SIZES, "ffn_dim": 64, "word_embed_proj_dim": 32, "init_std": 0.2, "dropout": 0.0}
        settings = {
            key: value
            for key, value in settings.items()
            if key not in ("intermediate_size", "num_key_value_heads", "initializer_range")
        }
        model = OPTForCausalLM(OPTConfig(**{**settings, **overrides}))
    else:
        raise ValueError(architecture)
    return model.eval()


def make_tokenizer() -> PreTrainedTokenizerFast:
    """One token per character, with <pad>, <bos> and <eos>; prepends <bos>."""
    vocabulary = {"<pad>": 0, "<bos>": 1, "<eos>": 2, **{c: i + 3 for i, c in enumerate(_ALPHABET)}}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token="<pad>"))
    backend.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    backend.post_processor = processors.TemplateProcessing(single="<bos> $A", special_tokens=[("<bos>", 1)])
    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token="<pad>",
        bos_token="<bos>",
        eos_token="<eos>",
        clean_up_tokenization_spaces=False,
    )
    wrapped.padding_side = "left"
    return wrapped


@pytest.fixture(scope="session")
def tokenizer() -> PreTrainedTokenizerFast:
    """That of `make_tokenizer`."""
    return make_tokenizer()


@pytest.fixture(scope="session")
def _bases(tokenizer: PreTrainedTokenizerFast) -> Callable[[str], tuple[PreTrainedModel, NeuronMap]]:
    made: dict[str, tuple[PreTrainedModel, NeuronMap]] = {}

    def get(architecture: str) -> tuple[PreTrainedModel, NeuronMap]:
        if architecture not in made:
            model = build_model(architecture)
            found = detect_neurons(model, tokenizer, SENTENCES, PAIRS, num_layers=2, general_ratio=0.7, progress=False)
            made[architecture] = (model, found)
        return made[architecture]

    return get


@pytest.fixture(scope="module")
def usual_lengths() -> Iterator[None]:
    """Take random models, which find no end, no further than 64 tokens; to the longest limit would take minutes."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(requests, "longest_limit", lambda tokenizer, source, _: min(usual_limit(tokenizer, source), 64))
        yield


@pytest.fixture(params=["llama", "bloom", pytest.param("gemma3", marks=pytest.mark.slow)])
def architecture(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def base(architecture: str, _bases: Callable[[str], tuple[PreTrainedModel, NeuronMap]]) -> PreTrainedModel:
    """A fresh copy of the tiny model; the weights are the same in every test."""
    return copy.deepcopy(_bases(architecture)[0])


@pytest.fixture
def neuron_map(architecture: str, _bases: Callable[[str], tuple[PreTrainedModel, NeuronMap]]) -> NeuronMap:
    """What detection finds on `base` for `PAIRS`: 2 layers a pair, 70% general neurons."""
    return _bases(architecture)[1]


def randomize_adapter(model: torch.nn.Module, std: float = 0.1, seed: int = 1) -> None:
    """Give all trainable parameters random values, as training would."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * std)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--behaviours", action="store_true", help="print the table of behaviours and architectures")


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    mark_repeats(items)
