"""One architecture with one kind of adapter."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from peft import PeftModel
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from peft_landermt import LanderConfig, NeuronMap
from peft_landermt.routed.config import RoutedConfig
from peft_landermt.routed.layer import RoutedLayer

from ...conftest import PAIRS
from ..helpers import PLACES, adapt, ids, lander_layers, logits, make_config

ADAPTERS: dict[str, tuple[list[str] | None, dict[str, Any]]] = {
    "no map": (None, {}),
    "one pair": (["en-de"], {}),
    "several pairs": (PAIRS, {}),
    "dense": (PAIRS, {"general_rank": None}),
    "drop": (PAIRS, {"inactive_neurons": "drop"}),
    "paper": (PAIRS, {"car": "paper", "inactive_neurons": "drop"}),
    "proportional": (PAIRS, {"car": "proportional"}),
    "token": (PAIRS, {"car": "token"}),
    "learned": (PAIRS, {"car": "learned"}),
    "default": (PAIRS, {name: getattr(LanderConfig, name) for name in PLACES}),
    "attention": (PAIRS, {"attention_modules": ["v", "o"], "attention_rank": 4, "specific_rank": 2}),
}
MODULES = {
    "llama": ["model.norm", "lm_head"],
    "gemma3": ["model.norm"],
    "bloom": ["transformer.ln_f"],
    "qwen2": ["model.norm"],
    "gpt2": ["transformer.ln_f"],
    "opt": ["lm_head"],
}
"""Modules of each architecture that are no FFN, for `modules_to_save`."""


@dataclass
class Case:
    """One architecture with one kind of adapter."""

    architecture: str
    kind: str
    model: PreTrainedModel
    neuron_map: NeuronMap
    tokenizer: PreTrainedTokenizerFast
    folder: Path

    prefix: ClassVar[str] = "lander_"
    """What names of the method's modules and parameters begin with."""

    @property
    def pairs(self) -> list[str] | None:
        return ADAPTERS[self.kind][0]

    @property
    def options(self) -> dict[str, Any]:
        return ADAPTERS[self.kind][1]

    @property
    def changes_fresh_output(self) -> bool:
        return self.config().changes_fresh_output

    def layers(self, model: nn.Module) -> dict[str, RoutedLayer]:
        """Adapted layers by their name in the base model."""
        return {**lander_layers(model)}

    @property
    def last_layer(self) -> str:
        """The last layer that serves en-de."""
        return self.neuron_map.neurons[self.neuron_map.layers("en-de")[-1]].name

    def config_for(self, pairs: list[str]) -> RoutedConfig:
        """A config for other pairs."""
        return make_config(self.neuron_map, pairs)

    def expected_parameters(self) -> int:
        """By hand, from the neuron map: rows, or rank times rows and width; two gates of d + 1 a pair; attention."""
        rank, projections = self.config().general_rank, 2 if self.architecture in ("bloom", "gpt2", "opt") else 3
        pairs = self.pairs or []
        expected = 0
        for layer, entry in enumerate(self.neuron_map.neurons):
            here = [pair for pair in pairs if layer in self.neuron_map.layers(pair)]
            if pairs and not here:
                continue
            owner = entry.owner.tolist() if pairs else [-1] * len(entry.owner)
            languages = {language for pair in here for language in pair.split("-")}
            specific = [owner.count(self.neuron_map.languages.index(language)) for language in languages]
            small = self.options.get("specific_rank")
            rows = sum(count * 32 if small is None else small * (count + 32) for count in specific if count)
            general = owner.count(-1)
            rows += general * 32 if rank is None else rank * (general + 32)
            gates = len(here) * 2 * 33 if self.options.get("car") == "learned" else 0
            attention = 4 * ((32 + 16) + (32 + 32)) if self.kind == "attention" else 0  # v has 2 heads of 8
            expected += (1 if self.options.get("projections") == "output" else projections) * rows + gates + attention
        if self.kind == "default":
            expected += len(self.neuron_map.neurons) * 6 * (2 * (32 + 16) + 2 * (32 + 32))  # q, k, v and o
        return expected

    @property
    def route(self) -> dict[str, list[str]]:
        """Keywords that a forward of three samples needs."""
        return {"language_pairs": PAIRS} if self.pairs == PAIRS else {}

    @property
    def can_merge(self) -> bool:
        return self.options.get("car") not in ("token", "learned")

    @property
    def adds_up(self) -> bool:
        """Whether several adapters of this kind can be active together."""
        return "car" not in self.options and "inactive_neurons" not in self.options

    def base(self) -> PreTrainedModel:
        return copy.deepcopy(self.model)

    def config(self, **options: Any) -> LanderConfig:
        return make_config(self.neuron_map if self.pairs else None, self.pairs, **{**self.options, **options})

    def adapted(self, seed: int | None = 1, base: PreTrainedModel | None = None, **options: Any) -> PeftModel:
        base = base if base is not None else self.base()
        neuron_map = self.neuron_map if self.pairs else None
        return adapt(base, neuron_map, self.pairs, seed=seed, **{**self.options, **options})

    def out(self, model: Any, **keywords: Any) -> torch.Tensor:
        return logits(model, ids(), **{**self.route, **keywords})

    def choose(self, model: Any, pair: str = "en-de") -> dict[str, Any]:
        """Choose a pair for all samples where there are several, for calls that cannot name pairs."""
        if self.route:
            getattr(model, "base_model", model).set_language_pair(pair)
        return {"language_pairs": [pair] * 3} if self.route else {}


def close(first: torch.Tensor, second: torch.Tensor) -> None:
    """Equal but for rounding."""
    torch.testing.assert_close(first, second, rtol=1e-4, atol=1e-4)


def trainable(model: nn.Module) -> dict[str, nn.Parameter]:
    """The weights that get gradients."""
    return {name: weight for name, weight in model.named_parameters() if weight.requires_grad}
