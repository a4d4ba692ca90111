"""What speed.py compares: the base model, full finetuning, LoRA, SHiRA and LANDeRMT on one base and one batch."""

from __future__ import annotations

import argparse
import copy
import itertools
from typing import Any

import torch
from adapters import adapt
from peft import get_peft_model
from random_base import SHAPES, load_random
from runs import PAPER, ROUTED, Run
from torch import nn

from peft_landermt import LanderConfig, NeuronMap, add_language_pairs, compose_language_pair, detect_neurons
from peft_landermt.demo import load_base, load_demo_corpus
from peft_landermt.detection import select_layers

LANGUAGES = ["en", "de", "fr", "it", "ar", "zh"]
PAIRS = [pair for other in LANGUAGES[1:] for pair in (f"en-{other}", f"{other}-en")]
OLD, ADDED, COMPOSED = PAIRS[:4], ["en-zh", "zh-en"], "de-zh"
"""Pairs of an adapter that grew."""

FORMS: dict[str, dict[str, Any]] = {
    "lander": {"method": "lander"},
    "paper": {"method": "lander", "options": PAPER, "detection": {"num_layers": 4}},
    "lslo": {"method": "lslo", "options": {"rank": 16}},
}
"""LANDeRMT with the library's defaults and in all layers; in the paper's form, in four; and LSLo with LoRA's rank."""
CONTENDERS = {
    "base": Run("zero-shot", tuple(PAIRS)),
    **{name: Run(name, tuple(PAIRS)) for name in ("full", "lora", "shira")},
    **{
        f"{form}-{pairs}": Run(pairs=tuple(PAIRS[:pairs]), **fields)
        for form, fields in FORMS.items()
        for pairs in (1, 4, 10)
    },
}
"""The number in a name is that of the pairs whose adapter it is."""


class Bench:
    """The base, its neuron map and the batch, and the contenders made from them."""

    def __init__(self, args: argparse.Namespace, num_layers: int | None = None, **shape_options: Any) -> None:
        self.args, self.device, self.repeats = args, args.device, args.repeats
        if args.shape in SHAPES:
            if args.layers:
                shape_options["num_hidden_layers"] = args.layers
            self.base, self.tokenizer = load_random(args.shape, args.dtype, args.device, **shape_options)
        else:
            self.base, self.tokenizer = load_base(args.model, getattr(torch, args.dtype), args.device, args.attention)
        self.base.requires_grad_(False).eval()
        corpus = load_demo_corpus()
        self.sentences = {language: corpus.calibration[language][: args.sentences] for language in LANGUAGES}
        self.num_layers = num_layers  # of all forms, whatever their own is
        if args.neuron_map is not None and args.neuron_map.exists():
            self.neuron_map = NeuronMap.load(args.neuron_map)
        else:
            self.neuron_map = self.detect()
            if args.neuron_map is not None:
                self.neuron_map.save(args.neuron_map)
        ids = itertools.chain.from_iterable(self.tokenizer(text)["input_ids"] for text in corpus.train["en"])
        self.tokens = torch.tensor(list(ids), device=args.device)
        self.batch = self.make_batch(args.batch_size)

    def detect(self) -> NeuronMap:
        return detect_neurons(self.base, self.tokenizer, self.sentences, PAIRS, num_layers=1, progress=False)

    def make_batch(self, rows: int) -> dict[str, torch.Tensor]:
        """Running text, cut into rows."""
        length = self.args.length
        copies = -(-rows * length // len(self.tokens))
        input_ids = self.tokens.repeat(copies)[: rows * length].view(rows, length)
        labels = input_ids.clone()
        labels[:, : length // 2] = -100
        return {"input_ids": input_ids, "attention_mask": torch.ones_like(input_ids), "labels": labels}

    def adapt(self, run: Run, base: Any) -> Any:
        """Put a method's adapter into a base, in place."""
        if run.method == "zero-shot":
            base.enable_input_require_grads()  # trained, it is the pass that every adapter needs at least
        count = self.num_layers or run.detection.get("num_layers", "all")
        return adapt(base.requires_grad_(run.method == "full"), run, select_layers(self.neuron_map, count))

    def make(self, name: str, own_weights: bool = False) -> Any:
        """A contender on the shared base weights, or on a copy of them where they will be written."""
        run = CONTENDERS[name]
        own_weights = own_weights or run.method == "full"
        return self.adapt(run, copy.deepcopy(self.base) if own_weights else self.view())

    def grown(self, init_from: str | None) -> Any:
        """An adapter of `OLD` to which `ADDED` were added, whose blocks begin as `init_from`, and `COMPOSED` was
        composed."""
        base, options = self.view(), {"num_layers": "all", "progress": False}

        def detect(languages: list[str], pairs: list[str], **more: Any) -> NeuronMap:
            sentences = {language: self.sentences[language] for language in languages}
            return detect_neurons(base, self.tokenizer, sentences, pairs, **options, **more)

        first = detect(LANGUAGES[:3], OLD)
        bigger = detect(["en", "zh"], ADDED, extends=first)
        model = get_peft_model(base, LanderConfig(task_type="CAUSAL_LM", neuron_map=first))
        add_language_pairs(model, bigger, ADDED, init_from=init_from)
        compose_language_pair(model, COMPOSED)
        return model

    def view(self) -> Any:
        """A model with modules of its own and the base's weights."""
        memo = {id(weight): nn.Parameter(weight.data, requires_grad=False) for weight in self.base.parameters()}
        return copy.deepcopy(self.base, memo)  # type: ignore[arg-type]

    def routing(self, name: str, rows: int) -> dict[str, list[str]]:
        """What a call of a routed contender says about the pairs of its rows; nothing for one pair."""
        run = CONTENDERS[name]
        if run.method not in ROUTED or len(run.pairs) < 2:
            return {}
        return {"language_pairs": spread_over(list(run.pairs), rows)}


def spread_over(names: list[str], rows: int) -> list[str]:
    """One name for each row; where there are more names than rows, some from all along the list."""
    if len(names) > rows:
        return [names[row * len(names) // rows] for row in range(rows)]
    return list(itertools.islice(itertools.cycle(names), rows))
