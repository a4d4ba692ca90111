"""What is compared: the methods, how each is trained on the same rows, and how all are scored.

A `Run` says what is done, a `Workbench` holds the base model and does it.
"""

from __future__ import annotations

import copy
import dataclasses
import hashlib
import json
import math
import random
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from common import ffn_projections, languages_of, plain_text_loss, read_flores, read_test, read_training_rows
from gradients import gradient_norms, layers_by_gradient
from houlsby import add_bottlenecks
from peft import LoraConfig, get_peft_model, initialize_lora_eva_weights, inject_adapter_in_model
from peft.tuners.lora.loraga import preprocess_loraga
from torch import nn
from transformers import TrainerCallback, TrainingArguments, set_seed

from peft_landermt import (
    LanderConfig,
    LanderTrainer,
    NeuronMap,
    TranslationCollator,
    detect_neurons,
    evaluate_translation,
)
from peft_landermt.demo import load_base
from peft_landermt.detection import select_layers
from peft_landermt.translation import TEMPLATES

UNTRAINED = ("zero-shot", "few-shot")
LORA = ("lora", "lora-ffn", "lora-attention", "adapter-lora")
LANDER = ("lander", "lander-lora")
"""`lander-lora` has LoRA in the attention, which LANDER leaves alone; at the scale of LANDER's factors."""
METHODS = (*UNTRAINED, "full", "adapter", *LORA, *LANDER)
CONTROLS = ("", "random neurons", "random layers", "first layers", "middle layers", "last layers", "largest gradients")
CALIBRATION, GRADIENTS, DEVELOPMENT, SHOTS = (1, 32), (1, 8), (101, 140), (141, 145)
"""Lines of FLORES-200 devtest for neuron detection, for choosing layers by gradients, for the learning rate and for
examples in the prompt. Lines up to 200 are never scored."""
START_ROWS = 128
"""Training rows that EVA and LoRA-GA look at to begin with."""
Keep = Callable[[str, str, list[str]], None]
"""Takes a test set, a direction and the translations."""


@dataclass(frozen=True)
class Run:
    """One method, trained on rows of some directions.

    Attributes:
        method: One of `METHODS`.
        pairs: Directions of the training rows.
        rows: Sentence pairs of each direction.
        learning_rates: What the learning rate is chosen from, by the development loss after `search_rows`.
        search_rows: Sentence pairs of each direction for that choice.
        batch_size: Rows of a batch.
        accumulation: Batches of an optimizer step.
        sampling: Which rows share a batch, as in `TrainingArguments.train_sampling_strategy`.
        epochs: Passes over the rows; what is kept is the adapter after the one with the lowest development loss.
        schedule: Of the learning rate after a warm-up of 6% of the first epoch, as in `TrainingArguments`. With
            `"constant_with_warmup"` a run of three epochs also tells what one and two give.
        templates: How many of the ten prompt templates are drawn from.
        seed: Of initial weights, order and templates; and of `control`.
        detection: Options of `detect_neurons`.
        options: Options of `LanderConfig`, of `LoraConfig`, or of `add_bottlenecks`.
        trainer: Options of `LanderTrainer`.
        control: Something of the same size in place of what was detected; one of `CONTROLS`.
    """

    method: str
    pairs: tuple[str, ...]
    rows: int = 400
    learning_rates: tuple[float, ...] = (5e-4, 1e-3, 2e-3)
    search_rows: int = 60
    batch_size: int = 8
    accumulation: int = 1
    sampling: str = "group_by_length"
    epochs: int = 1
    schedule: str = "cosine"
    templates: int = 1
    seed: int = 0
    detection: Mapping[str, Any] = field(default_factory=dict)
    options: Mapping[str, Any] = field(default_factory=dict)
    trainer: Mapping[str, Any] = field(default_factory=lambda: {"row_lr_ratio": 0.03})
    control: str = ""

    def to_dict(self) -> dict[str, Any]:
        return json.loads(json.dumps(dataclasses.asdict(self)))

    @classmethod
    def from_dict(cls, result: Mapping[str, Any]) -> Run:
        """The run that a line of results is of."""
        names = {entry.name for entry in dataclasses.fields(cls)}
        values = {name: value for name, value in result.items() if name in names}
        if "row_lr_ratio" in result:  # lines from before there were other options
            values["trainer"] = {"row_lr_ratio": result["row_lr_ratio"]}
        for name in ("pairs", "learning_rates"):
            values[name] = tuple(values[name])
        return cls(**values)

    @property
    def form(self) -> str:
        """What LANDER's deltas are: `rows`, `factors` or `both`."""
        tune = self.options.get("tune", "pair")
        if tune == "specific" or self.options.get("general_rank", 16) is None:
            return "rows"
        return "both" if tune == "pair" else "factors"

    @property
    def detects(self) -> bool:
        """Whether it depends on a neuron map."""
        return self.method in (*LANDER, "lora-ffn")

    @property
    def key(self) -> str:
        """Identifies a run among results: runs that differ in nothing that matters to them have one key."""
        values = self.to_dict()
        values |= values.pop("trainer")
        if self.method not in LANDER:
            values.pop("control")
        if self.method not in LANDER or self.form != "both":
            values.pop("row_lr_ratio", None)
        if not self.detects:
            values.pop("detection")
        if self.schedule == "cosine":  # runs from before there was a choice have keys too
            values.pop("schedule")
        if self.method in UNTRAINED:
            values = {"method": self.method}
        return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:12]


@dataclass(frozen=True)
class Test:
    """A test set and the lines of it that are scored, counted from 1; a direction that it lacks is left out."""

    name: str
    first: int
    last: int

    def __str__(self) -> str:
        return f"{self.name} {self.first} to {self.last}"


class Workbench:
    """A base model and real corpora.

    Args:
        data: Folder with `train/`, `flores200/` and `test/`.
        model: `demo`, a GGUF file, a folder or a Hub id.
        dtype: Type of the base weights.
        device: Where everything runs.
        maps: Folder where neuron maps are kept from one process to the next; None: nowhere.
    """

    def __init__(
        self,
        data: Path,
        model: str = "demo",
        dtype: str = "float32",
        device: str = "cpu",
        maps: Path | None = None,
    ) -> None:
        self.data, self.device, self.maps = data, device, maps
        self.name = f"{model}, {dtype}"
        self.base, self.tokenizer = load_base(model, getattr(torch, dtype), device)
        self._maps: dict[str, NeuronMap] = {}
        self._gradient_norms: dict[str, torch.Tensor] = {}

    def neuron_map(self, run: Run) -> NeuronMap:
        """What detection finds for the directions of a run, or its control."""
        options = dict(run.detection)
        num_layers = options.pop("num_layers", 4)
        key = hashlib.sha256(json.dumps([self.name, run.pairs, options], sort_keys=True).encode()).hexdigest()[:12]
        if key not in self._maps:
            path = self.maps / f"{key}.safetensors" if self.maps is not None else None
            self._maps[key] = self._detect(run.pairs, options, path)
        found = select_layers(self._maps[key], num_layers)
        if run.control == "largest gradients":
            norms = {language: self._norms_of_gradients(language) for language in languages_of(run.pairs)}
            return controlled(found, run.control, pair_layers=layers_by_gradient(norms, run.pairs, num_layers))
        return control(found, run.control, run.seed)

    def _norms_of_gradients(self, language: str) -> torch.Tensor:
        if language not in self._gradient_norms:
            texts = read_flores(self.data, *GRADIENTS, [language])[language]
            self._gradient_norms[language] = gradient_norms(self.base, self.tokenizer, texts)
        return self._gradient_norms[language]

    def _detect(self, pairs: tuple[str, ...], options: dict[str, Any], path: Path | None) -> NeuronMap:
        if path is not None and path.exists():
            return NeuronMap.load(path)
        sentences = read_flores(self.data, *CALIBRATION, languages_of(pairs))
        found = detect_neurons(self.base, self.tokenizer, sentences, pairs, num_layers=1, **options)  # k comes after
        if path is not None:
            found.save(path)
        return found

    def make(self, run: Run, rows: int) -> Any:
        """A fresh copy of the base with the method's adapter; a start by data looks at these rows of a direction."""
        set_seed(run.seed)
        model = copy.deepcopy(self.base)
        if run.method in LORA:
            options: dict[str, Any] = dict(run.options)
            if run.method == "lora-ffn":
                options["target_modules"] = ffn_projections(model, self.neuron_map(run), run.pairs)
            elif run.method == "lora-attention":
                options["exclude_modules"] = ffn_projections(model)
            model = self._start(model, lora(**options), run, rows)
        if run.method in ("adapter", "adapter-lora"):
            if run.method == "adapter":
                model.requires_grad_(False)
            add_bottlenecks(model, **(run.options if run.method == "adapter" else {}))
        if run.method in LANDER:
            if run.method == "lander-lora":
                model = inject_adapter_in_model(lora(lora_alpha=16, exclude_modules=ffn_projections(model)), model)
                del model.peft_config  # else PEFT takes LoRA for an adapter of LANDER's
            found = self.neuron_map(run)
            config = LanderConfig(
                task_type="CAUSAL_LM", neuron_map=found, language_pairs=list(run.pairs), **run.options
            )
            model = get_peft_model(model, config)
            for name, weight in model.named_parameters():
                if ".lora_" in name:  # beside it, and frozen by PEFT
                    weight.requires_grad_(True)
        return model

    def _start(self, model: Any, config: LoraConfig, run: Run, rows: int) -> Any:
        """The model with LoRA, started as its config says; EVA and LoRA-GA look at training rows in random order."""
        if config.init_lora_weights not in ("eva", "lora_ga"):
            return get_peft_model(model, config)
        drawn = read_training_rows(self.data, list(run.pairs), rows)
        random.Random(run.seed).shuffle(drawn)
        collator = TranslationCollator(self.tokenizer, templates=TEMPLATES[: run.templates], seed=run.seed)
        batches = []
        for first in range(0, min(len(drawn), START_ROWS), run.batch_size):
            batch = collator(drawn[first : first + run.batch_size])
            batch.pop("language_pairs")
            batches.append({name: tensor.to(self.device) for name, tensor in batch.items()})

        def pass_all() -> None:
            for batch in batches:
                model(**batch, use_cache=False).loss.backward()

        if config.init_lora_weights == "lora_ga":
            preprocess_loraga(model, config, pass_all)
        model = get_peft_model(model, config)
        if config.init_lora_weights == "eva":
            initialize_lora_eva_weights(model, batches, show_progress_bar=False)
        return model

    def train(self, run: Run, model: Any, rows: int, learning_rate: float) -> list[dict[str, Any]]:
        """Train in place on the first `rows` sentence pairs of every direction, and keep the best epoch's weights.

        Returns:
            For each epoch the development loss, also by direction, and the seconds that its training took.
        """
        examples = read_training_rows(self.data, list(run.pairs), rows)
        steps = math.ceil(math.ceil(len(examples) / run.batch_size) / run.accumulation)
        epochs = EpochLosses(run.seed, lambda: self.development_losses(run, model, run.pairs))
        trainer = self._trainer(
            run,
            model,
            callbacks=[epochs],
            train_dataset=examples,
            learning_rate=learning_rate,
            num_train_epochs=run.epochs,
            per_device_train_batch_size=run.batch_size,
            gradient_accumulation_steps=run.accumulation,
            train_sampling_strategy=run.sampling,
            lr_scheduler_type=run.schedule,
            warmup_steps=math.ceil(0.06 * steps),
            weight_decay=0.0,
            logging_steps=10,
            save_strategy="no",
        )
        trainer.train()
        with torch.no_grad():
            for name, weight in model.named_parameters():
                if name in epochs.best:
                    weight.copy_(epochs.best[name])
        return epochs.found

    @torch.no_grad()
    def development_losses(self, run: Run, model: Any, pairs: Sequence[str]) -> tuple[float, dict[str, float]]:
        """Loss on the development lines: of all directions, a mean over batches; of each one, over its tokens."""
        texts = read_flores(self.data, *DEVELOPMENT, languages_of(pairs))
        rows = [
            {"source": source, "target": target, "language_pair": pair}
            for pair in pairs
            for source, target in zip(*(texts[language] for language in pair.split("-")), strict=True)
        ]
        found = self._trainer(run, model, eval_dataset=rows, per_device_eval_batch_size=8).evaluate()
        return found["eval_loss"], {pair: found[f"eval_loss_{pair}"] for pair in pairs}

    def _trainer(
        self,
        run: Run,
        model: Any,
        train_dataset: Any = None,
        eval_dataset: Any = None,
        callbacks: list[TrainerCallback] | None = None,
        **arguments: Any,
    ) -> LanderTrainer:
        templates = TEMPLATES[: run.templates] if train_dataset is not None else TEMPLATES[:1]
        return LanderTrainer(
            model=model,
            args=TrainingArguments(
                output_dir=tempfile.gettempdir(),  # nothing is saved
                report_to=[],
                seed=run.seed,
                use_cpu=self.device == "cpu",
                disable_tqdm=True,
                **arguments,
            ),
            data_collator=TranslationCollator(self.tokenizer, templates=templates, seed=run.seed),
            train_dataset=train_dataset,
            eval_dataset=eval_dataset,
            processing_class=self.tokenizer,
            callbacks=callbacks,
            **run.trainer,
        )

    def score(
        self, run: Run, model: Any, test: Test, pairs: tuple[str, ...], keep: Keep | None = None
    ) -> dict[str, dict[str, Any]]:
        """Scores of every direction that the test set has."""
        scores = {}
        for pair in pairs:
            texts = read_test(self.data, test.name, pair, test.first, test.last)
            if texts is not None:
                template = self._few_shot_template(pair) if run.method == "few-shot" else None
                found = evaluate_translation(model, self.tokenizer, *texts, pair, batch_size=30, template=template)
                print(f"{test}, {pair}: {found.bleu:.2f} BLEU, {found.chrf:.2f} chrF++", flush=True)
                if keep is not None:
                    keep(str(test), pair, found.hypotheses)
                scores[pair] = {
                    "bleu": found.bleu,
                    "chrf": found.chrf,
                    "empty": found.num_empty,
                    "runaway": found.num_runaway,
                    "signature": found.bleu_signature,
                }
        return scores

    def _few_shot_template(self, pair: str) -> str:
        texts = read_flores(self.data, *SHOTS, pair.split("-"))
        examples = []
        for source, target in zip(*(texts[language] for language in pair.split("-")), strict=True):
            filled = TEMPLATES[0].replace("{source}", _escaped(source))
            examples.append(f"{filled} {_escaped(target)}\n\n")
        return "".join(examples) + TEMPLATES[0]

    def execute(
        self,
        run: Run,
        tests: list[Test],
        pairs: tuple[str, ...] | None = None,
        keep: Keep | None = None,
    ) -> dict[str, Any]:
        """Choose the learning rate, train, score.

        Args:
            run: What is done.
            tests: Test sets.
            pairs: Directions that are scored; those of the run by default.
            keep: Called with the test set, the direction and the translations.

        Returns:
            The run's settings and what was measured.
        """
        result: dict[str, Any] = {"key": run.key, **run.to_dict()}
        model = self.base.eval()
        if run.method not in UNTRAINED:
            if run.detects:
                result["neuron_map"] = self.neuron_map(run).signature
            learning_rate = run.learning_rates[0]
            if len(run.learning_rates) > 1:
                result["search"] = {lr: self._development_loss_of(run, lr) for lr in run.learning_rates}
                learning_rate = min(result["search"], key=result["search"].__getitem__)
            model = self.make(run, run.rows)
            result["learning_rate"] = learning_rate
            result["trainable_parameters"] = sum(p.numel() for p in model.parameters() if p.requires_grad)
            result["by_epoch"] = self.train(run, model, run.rows, learning_rate)
            result["train_seconds"] = sum(epoch["seconds"] for epoch in result["by_epoch"])
            best = min(result["by_epoch"], key=lambda epoch: epoch["development_loss"])
            result |= {name: best[name] for name in ("development_loss", "development_losses")}
        result.setdefault("development_losses", {})
        result["scores"] = {str(test): {} for test in tests}
        pairs = pairs or run.pairs
        for own in (True, False):
            group = tuple(pair for pair in pairs if (pair in run.pairs) == own)
            if not group:
                continue
            if run.method in LANDER and not own:
                model = model.merge_and_unload()  # an adapter serves only its own pairs; this shows the others
            measured = set(group) <= result["development_losses"].keys()
            if not measured and run.method != "few-shot":  # its examples are in the prompts that are scored
                loss, losses = self.development_losses(run, model, group)
                print(f"development loss {loss:.4f}", flush=True)
                result.setdefault("development_loss", loss)
                result["development_losses"] |= losses
            for test in tests:
                result["scores"][str(test)] |= self.score(run, model, test, group, keep)
        result["perplexity"] = {language: self.perplexity(model, language) for language in languages_of(pairs)}
        return result

    def perplexity(self, model: Any, language: str) -> float:
        """Of the development lines of one language as plain text, routed as a translation into it, or from it."""
        routed = getattr(model, "routed_language_pairs", [])
        fitting = [pair for side in (1, 0) for pair in routed if pair.split("-")[side] == language]
        routing = {"language_pairs": fitting[:1]} if fitting else {}
        texts = read_flores(self.data, *DEVELOPMENT, [language])[language]
        return math.exp(plain_text_loss(model, self.tokenizer, texts, **routing))

    def _development_loss_of(self, run: Run, learning_rate: float) -> float:
        candidate = self.make(run, run.search_rows)
        loss = min(epoch["development_loss"] for epoch in self.train(run, candidate, run.search_rows, learning_rate))
        print(f"lr {learning_rate:g}: development loss {loss:.4f}", flush=True)
        return loss


class EpochLosses(TrainerCallback):
    """What every epoch gives, and the trained weights after the best one.

    Every epoch begins with a seed of its own, so that the order of rows does not depend on what a method drew before.

    Args:
        seed: Of the run.
        measure: Gives the development loss, and that of every direction.
    """

    def __init__(self, seed: int, measure: Callable[[], tuple[float, dict[str, float]]]) -> None:
        self.seed, self.measure = seed, measure
        self.found: list[dict[str, Any]] = []
        self.lowest = math.inf
        self.best: dict[str, torch.Tensor] = {}

    def on_epoch_begin(self, *_args: Any, **_options: Any) -> None:
        set_seed(self.seed + len(self.found))
        self._start = time.perf_counter()

    def on_epoch_end(self, *_args: Any, model: nn.Module, **_options: Any) -> None:
        seconds = time.perf_counter() - self._start
        loss, losses = self.measure()
        print(f"epoch {len(self.found) + 1}: development loss {loss:.4f}, {seconds:.0f} s", flush=True)
        if loss < self.lowest:
            trained = {name: weight for name, weight in model.named_parameters() if weight.requires_grad}
            self.lowest, self.best = loss, {name: weight.detach().clone() for name, weight in trained.items()}
        self.found.append({"development_loss": loss, "development_losses": losses, "seconds": seconds})


def lora(r: int = 16, **options: Any) -> LoraConfig:
    """PEFT's LoRA on all linear layers, with an alpha of twice its rank where the options say nothing else."""
    defaults = {"lora_alpha": 2 * r, "target_modules": "all-linear"}
    return LoraConfig(task_type="CAUSAL_LM", r=r, **{**defaults, **options})


def control(found: NeuronMap, kind: str, seed: int) -> NeuronMap:
    """A map with something of the same size in place of what was detected."""
    if kind not in CONTROLS:
        raise ValueError(f"control={kind!r}: must be one of {', '.join(map(repr, CONTROLS))}.")
    if not kind:
        return found
    generator = torch.Generator().manual_seed(seed)
    if kind == "random neurons":
        neurons = tuple(
            dataclasses.replace(layer, owner=layer.owner[torch.randperm(len(layer.owner), generator=generator)])
            for layer in found.neurons
        )
        return controlled(found, kind, neurons=neurons)
    draw = partial(_consecutive, kind) if kind != "random layers" else partial(_random, generator=generator)
    layers = {pair: tuple(draw(found.num_layers, len(chosen))) for pair, chosen in found.pair_layers.items()}
    return controlled(found, kind, pair_layers=layers)


def controlled(found: NeuronMap, kind: str, **changed: Any) -> NeuronMap:
    """A map with something else in place of what was detected; its signature names the control."""
    return dataclasses.replace(found, signature=f"{found.signature}|control:{kind}", **changed)


def _consecutive(kind: str, total: int, count: int) -> list[int]:
    start = {"first layers": 0, "middle layers": (total - count) // 2, "last layers": total - count}[kind]
    return list(range(start, start + count))


def _random(total: int, count: int, generator: torch.Generator) -> list[int]:
    return sorted(torch.randperm(total, generator=generator)[:count].tolist())


def _escaped(text: str) -> str:
    return text.replace("{", "{{").replace("}", "}}")
