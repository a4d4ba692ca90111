"""One architecture with one kind of adapter."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from peft_landermt import LanderConfig, NeuronMap

from ...conftest import PAIRS
from ..helpers import PLACES, adapt, ids, logits, make_config

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

    @property
    def pairs(self) -> list[str] | None:
        return ADAPTERS[self.kind][0]

    @property
    def options(self) -> dict[str, Any]:
        return ADAPTERS[self.kind][1]

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
