"""Tiny random bases for tables: those of `tests/tuner/test_architectures.py`, and others."""

from __future__ import annotations

import copy
from functools import cache
from typing import Any

import pytest
import torch
import transformers
from transformers import PreTrainedModel

from ..conftest import DECODER_SIZES, VOCABULARY
from ..tuner.test_architectures import _DROPOUT, ARCHITECTURES, ENCODER_DECODERS, tiny

_TOKENS: dict[str, Any] = {"vocab_size": VOCABULARY, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
_GPT = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 256, "initializer_range": 0.2}
_DECODER = {**DECODER_SIZES, "num_hidden_layers": 2}
_FALCON = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "ffn_hidden_size": 64}
_NEO = {"hidden_size": 32, "num_layers": 2, "num_heads": 4, "attention_types": [[["global", "local"], 1]]}
_BIG_BART = {"d_model": 32, "encoder_layers": 2, "decoder_layers": 2, "encoder_ffn_dim": 64, "decoder_ffn_dim": 64}
_HEADS = {"encoder_attention_heads": 4, "decoder_attention_heads": 4, "init_std": 0.2, "decoder_start_token_id": 2}

OTHERS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "GPT-J": ("GPTJForCausalLM", "GPTJConfig", {**_GPT, "rotary_dim": 4}),
    "CodeGen": ("CodeGenForCausalLM", "CodeGenConfig", {**_GPT, "rotary_dim": 4}),
    "Starcoder": ("GPTBigCodeForCausalLM", "GPTBigCodeConfig", _GPT),
    "Starcoder 2": ("Starcoder2ForCausalLM", "Starcoder2Config", _DECODER),
    "GPT-Neo": ("GPTNeoForCausalLM", "GPTNeoConfig", {**_NEO, "window_size": 8, "max_position_embeddings": 256}),
    "GPT": ("OpenAIGPTLMHeadModel", "OpenAIGPTConfig", _GPT),
    "CTRL": ("CTRLLMHeadModel", "CTRLConfig", {**_GPT, "dff": 64}),
    "BioGPT": ("BioGptForCausalLM", "BioGptConfig", _DECODER),
    "Nemotron": ("NemotronForCausalLM", "NemotronConfig", _DECODER),
    "Falcon, ALiBi": ("FalconForCausalLM", "FalconConfig", {**_FALCON, "alibi": True}),
    "Falcon, new": ("FalconForCausalLM", "FalconConfig", {**_FALCON, "new_decoder_architecture": True}),
    "BART": ("BartForConditionalGeneration", "BartConfig", {**_BIG_BART, **_HEADS}),
    "Pegasus": ("PegasusForConditionalGeneration", "PegasusConfig", {**_BIG_BART, **_HEADS}),
}
TWO_STACKS = (*ENCODER_DECODERS, "BART", "Pegasus")
BASES = (*(name for name in ARCHITECTURES if not name.startswith("named: ")), *OTHERS)
DECODERS = tuple(name for name in BASES if name not in TWO_STACKS)

EACH_KIND = (
    *("GPT-2", "OPT", "BLOOM", "MPT", "Falcon, ALiBi", "GPT-NeoX (Pythia)", "Gemma 3"),
    *("NLLB, M2M100", "mBART", "T5"),
)
"""One of every way to know positions: learned, learned with an offset, three of distances, rotary in part, windows;
and sinusoids, learned ones and distances in encoder-decoders."""


def table(names: tuple[str, ...]) -> list[Any]:
    """Bases for `parametrize`: one of every kind always, the others with the slow tests."""
    return [pytest.param(name, marks=() if name in EACH_KIND else pytest.mark.slow) for name in names]


@cache
def _other(name: str) -> PreTrainedModel:
    model, config, options = OTHERS[name]
    torch.manual_seed(0)
    settled = {**dict.fromkeys(_DROPOUT, 0.0), **options, **_TOKENS}
    made = getattr(transformers, model)(getattr(transformers, config)(**settled))
    with torch.no_grad():  # positions that matter, of whatever kind
        for key, weight in made.named_parameters():
            if "position" in key or "wpe" in key:
                weight.normal_(std=0.2)
    return made.eval()


def build(name: str) -> PreTrainedModel:
    """A fresh base without dropout."""
    return copy.deepcopy(_other(name) if name in OTHERS else tiny(name))
