"""Adapter folders of all kinds, the roads on which they are loaded, and models to load them into."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from peft import AutoPeftModelForCausalLM, PeftModel, set_peft_model_state_dict
from peft.utils import load_peft_weights
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import AutoModelForCausalLM

from peft_landermt import NeuronMap, compose_language_pair, detect_neurons, join_adapters
from peft_landermt.routed.folder import digest_of

from ..conftest import PAIRS, SENTENCES, build_model, make_tokenizer
from ..tuner.growing import ITALIAN, MORE, grow
from ..tuner.helpers import adapt, make_config
from ..tuner.roads import by_transformers, first, hotswap, over_itself, second
from .mutations import Tensors

WEIGHTS, CONFIG = "adapter_model.safetensors", "adapter_config.json"
PREFIX = "base_model.model."

VARIANTS: dict[str, dict[str, Any]] = {
    "two pairs": {"language_pairs": ["en-de", "en-fr"]},
    "rows": {"language_pairs": ["en-de"], "general_rank": None, "tune": "pair"},
    "saved module": {"language_pairs": ["en-de"], "modules_to_save": ["lm_head"]},
    "token, drop": {"language_pairs": ["en-de"], "car": "token", "inactive_neurons": "drop"},
    "paper": {"language_pairs": ["en-de"], "car": "paper"},
    "learned": {"language_pairs": ["en-de", "de-en"], "car": "learned"},
    "grown": {"language_pairs": ["en-de"], "car": "learned", "attention_modules": ["v"], "attention_rank": 2},
    "no map": {"language_pairs": ["en-de"]},
    "embeddings": {"language_pairs": ["en-de"]},
}


def by_state_dict(model: PeftModel, folder: Path) -> Any:
    """Only the tensors are read."""
    return set_peft_model_state_dict(model, load_peft_weights(str(folder), device="cpu"))


def auto(model: None, folder: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(str(folder))


def auto_peft(model: None, folder: Path) -> Any:
    return AutoPeftModelForCausalLM.from_pretrained(str(folder))


def joined(model: nn.Module, folder: Path) -> Any:
    return join_adapters(model, [folder])


ROADS: dict[str, tuple[str | None, Callable[..., Any]]] = {
    "from_pretrained": ("plain", first),
    "load_adapter": ("another", second),
    "load_adapter, a loaded name": ("same form", over_itself),
    "hotswap_adapter": ("same form", hotswap),
    "transformers": ("plain", by_transformers),
    "set_peft_model_state_dict": ("same form", by_state_dict),
    "AutoModel": (None, auto),
    "AutoPeftModel": (None, auto_peft),
    "join_adapters": ("plain", joined),
}


READ_FIRST = {
    "set_peft_model_state_dict": ("peft",),
    "AutoModel": ("transformers",),
    "AutoPeftModel": ("transformers",),
}
"""Who looks at a state dict or a folder before this package is asked, even if it says that it is of this package."""


class Stage:
    """Folders of all variants, and models to load them into, each made once and used while loads are refused."""

    def __init__(self, root: Path) -> None:
        self.root = root
        base = build_model("llama")
        self.neuron_map: NeuronMap = detect_neurons(
            base, make_tokenizer(), SENTENCES, PAIRS, num_layers=2, general_ratio=0.7, progress=False
        )
        texts = {"en": SENTENCES["en"], "it": MORE["it"]}
        options = {"num_layers": 2, "general_ratio": 0.7, "progress": False, "extends": self.neuron_map}
        self.bigger = detect_neurons(base, make_tokenizer(), texts, ITALIAN, **options)
        self.models: dict[tuple[str, str], nn.Module] = {}
        for name in VARIANTS:
            model = self.base(name)
            model.save_pretrained(root / "bases" / name)
            model.name_or_path = model.config._name_or_path = str(root / "bases" / name)
            self.adapted(model, name, 1).save_pretrained(root / name)
            if name == "embeddings":
                # PEFT saves them of its own accord only where the base on disk has other ones
                state = load_file(root / name / WEIGHTS)
                state[f"{PREFIX}model.embed_tokens.weight"] = model.get_input_embeddings().weight.detach()
                config = json.loads((root / name / CONFIG).read_text())
                self.write(root / name, {**config, "embedding_layers": ["model.embed_tokens"]}, state)

    def base(self, variant: str) -> Any:
        """A base; one with more tokens than others where embeddings travel along."""
        model = build_model("llama")
        if variant == "embeddings":
            model.resize_token_embeddings(130, mean_resizing=False)
        return model

    def adapted(self, base: Any, variant: str, seed: int) -> PeftModel:
        """A base with an adapter of a variant."""
        model = adapt(base, None if variant == "no map" else self.neuron_map, seed=seed, **VARIANTS[variant])
        if variant == "grown":
            grow(model, self.bigger, ITALIAN, seed=seed)
            compose_language_pair(model, "it-de", neuron_map=self.bigger)
        return model

    def model(self, start: str | None, variant: str) -> Any:
        """A model as a road needs it."""
        if start is None:
            return None
        if (start, variant) not in self.models:
            model = self.base(variant)
            if start == "another":
                model = adapt(model, self.neuron_map, ["en-fr"], adapter_name="good", modules_to_save=["lm_head"])
            elif start == "same form":
                model = self.adapted(model, variant, 7)
                model.add_adapter("good", make_config(self.neuron_map, ["en-fr"], modules_to_save=["lm_head"]))
            next(iter(model.parameters())).requires_grad_(False)
            self.models[start, variant] = model
        return self.models[start, variant]

    def write(self, folder: Path, config: Any, state: Tensors | None = None, sign: str = "anew") -> None:
        """Write config and tensors, with a digest that fits, without one, or with that of before."""
        if state is not None:
            save_file(state, folder / WEIGHTS, {"format": "pt"})
        if isinstance(config, dict) and sign != "not":
            config = {**config, "digest": None}
            if sign == "anew":
                config["digest"] = digest_of(config, folder / WEIGHTS)
        (folder / CONFIG).write_text(json.dumps(config))
