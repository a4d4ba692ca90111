"""What the tests of growing adapters share: more languages, maps that extend others, and a run of additions."""

from __future__ import annotations

import copy
from functools import cache
from typing import Any

import torch
from peft import PeftModel, get_peft_model_state_dict
from transformers import PreTrainedModel

from peft_landermt import NeuronMap, add_language_pairs, detect_neurons

from ..conftest import PAIRS, SENTENCES, make_tokenizer, randomize_adapter
from .helpers import adapt, ids, logits
from .make_stored import ITALIAN_SENTENCES
from .test_architectures import ARCHITECTURES, ENCODER_DECODERS, found, tiny

MORE = {
    "it": ITALIAN_SENTENCES,
    "es": ["La casa es vieja.", "Bebemos té.", "Donde está la estación?", "Llovió toda la noche."],
}
ITALIAN, SPANISH = ["en-it", "it-en"], ["en-es", "es-de"]
GROWN = [*PAIRS, *ITALIAN, *SPANISH]


@cache
def tokenizer() -> Any:
    return make_tokenizer()


@cache
def maps(name: str) -> tuple[NeuronMap, NeuronMap, NeuronMap]:
    """Of English, German and French; then with Italian; then with Spanish, which has other layers too."""
    first = found(name, tokenizer())
    few = 1 if name in ENCODER_DECODERS else 2
    options: dict[str, Any] = {"general_ratio": 0.7, "progress": False}
    texts = {"en": SENTENCES["en"], "it": MORE["it"]}
    second = detect_neurons(tiny(name), tokenizer(), texts, ITALIAN, num_layers=few, extends=first, **options)
    texts = {"en": SENTENCES["en"], "de": SENTENCES["de"], "es": MORE["es"]}
    third = detect_neurons(tiny(name), tokenizer(), texts, SPANISH, num_layers=few + 1, extends=second, **options)
    return first, second, third


def adapted(name: str, **options: Any) -> PeftModel:
    """An adapter of `PAIRS` with random values."""
    layout = ARCHITECTURES[name].ffn_layout
    return adapt(copy.deepcopy(tiny(name)), maps(name)[0], PAIRS, ffn_layout=layout, **options)


def grow(model: PeftModel, neuron_map: NeuronMap, pairs: list[str], seed: int = 5, **options: Any) -> None:
    """Add pairs, and give what is trained then random values."""
    add_language_pairs(model, neuron_map, pairs, **{"specific_rank": 2, "attention_rank": 2, **options})
    randomize_adapter(model, seed=seed)


def grown(name: str, **options: Any) -> PeftModel:
    """An adapter of `GROWN`."""
    model = adapted(name, **options)
    grow(model, maps(name)[1], ITALIAN)
    grow(model, maps(name)[2], SPANISH, seed=6, tune="specific", projections="output")
    return model


def of_pairs(model: torch.nn.Module, pairs: list[str]) -> dict[str, torch.Tensor]:
    """Logits of every pair, and of a batch of the first three."""
    single = {pair: logits(model, ids(), language_pairs=[pair] * 3) for pair in pairs}
    return {**single, "mixed": logits(model, ids(), language_pairs=[*pairs, *pairs, *pairs][:3])}


def same(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> bool:
    return all(first[key].equal(second[key]) for key in first)


def saved(model: PeftModel) -> dict[str, torch.Tensor]:
    return {key: value.clone() for key, value in get_peft_model_state_dict(model).items()}


def holds(state: dict[str, torch.Tensor], earlier: dict[str, torch.Tensor]) -> bool:
    """Whether tensors are bit for bit what they were; those with rows of pairs may have got more rows."""
    return all(
        state[key][: len(value)].equal(value) and state[key].dtype == value.dtype for key, value in earlier.items()
    )


def base(name: str) -> PreTrainedModel:
    return copy.deepcopy(tiny(name))
