"""How every method is trained on the same rows in the same order, and scored: a `Run` is done on a `Workbench`."""

from __future__ import annotations

import copy
import hashlib
import json
import math
import random
import re
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from adapters import adapt
from common import (
    CALIBRATION,
    DEVELOPMENT,
    GRADIENTS,
    SHOTS,
    languages_of,
    plain_text_loss,
    read_flores,
    read_test,
    read_training_rows,
)
from controls import control, controlled, gradient_norms, layers_by_gradient
from epochs import EpochLosses, cosine_by_epoch, lowest
from filelock import FileLock
from runs import ROUTED, UNTRAINED, Run, Test
from transformers import TrainingArguments, set_seed

from peft_landermt import (
    GradualPruning,
    LanderTrainer,
    NeuronMap,
    TranslationCollator,
    detect_neurons,
    evaluate_translation,
)
from peft_landermt.demo import load_base
from peft_landermt.detection import select_layers
from peft_landermt.translation import TEMPLATES
from peft_landermt.translation.models import scale_rate

START_ROWS = 128
"""Training rows that EVA and LoRA-GA look at to begin with."""
Keep = Callable[[str, str, list[str]], None]
"""Takes a test set, a direction and the translations."""
_here: Workbench
"""That of a process which is one of several."""


def open_here(threads: int, *arguments: Any) -> None:
    """Open a workbench that is this process's own."""
    global _here
    torch.set_num_threads(threads)
    _here = Workbench(*arguments)


def execute_here(title: str, *arguments: Any) -> dict[str, Any]:
    """`Workbench.execute` on this process's own."""
    print(f"\n{title}", flush=True)
    return _here.execute(*arguments)


class Workbench:
    """A base model and real corpora.

    Args:
        data: Folder with `train/`, `flores200/` and `test/`.
        model: `demo`, a GGUF file, a folder or a Hub id.
        dtype: Type of the base weights.
        device: Where everything runs.
        maps: Folder where neuron maps are kept from one process to the next; None: nowhere.
        attention: Implementation of the base's attention, as transformers calls it; None: the default.
        score_batch: Sentences that are translated together.
    """

    def __init__(
        self,
        data: Path,
        model: str = "demo",
        dtype: str = "float32",
        device: str = "cpu",
        maps: Path | None = None,
        attention: str | None = None,
        score_batch: int = 30,
    ) -> None:
        self.data, self.device, self.maps, self.score_batch = data, device, maps, score_batch
        self.name = f"{model}, {dtype}"
        self.base, self.tokenizer = load_base(model, getattr(torch, dtype), device, attention)
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
        if path is None:
            sentences = read_flores(self.data, *CALIBRATION, languages_of(pairs))
            return detect_neurons(
                self.base, self.tokenizer, sentences, pairs, num_layers=1, **options
            )  # k comes after
        path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(path.with_suffix(".lock")):  # processes side by side detect once
            if not path.exists():
                self._detect(pairs, options, None).save(path)
        return NeuronMap.load(path)

    def make(self, run: Run, rows: int) -> Any:
        """A fresh copy of the base with the method's adapter; a start by data looks at these rows of a direction."""
        set_seed(run.seed)
        found = self.neuron_map(run) if run.detects else None
        return adapt(copy.deepcopy(self.base), run, found, lambda: self._batches(run, rows))

    def _batches(self, run: Run, rows: int) -> list[dict[str, torch.Tensor]]:
        """Training rows of all directions in random order, `START_ROWS` at most."""
        drawn = read_training_rows(self.data, list(run.pairs), rows)
        random.Random(run.seed).shuffle(drawn)
        collator = TranslationCollator(self.tokenizer, templates=TEMPLATES[: run.templates], seed=run.seed)
        starts = range(0, min(len(drawn), START_ROWS), run.batch_size)
        batches = [collator(drawn[start : start + run.batch_size]) for start in starts]
        names = ("input_ids", "attention_mask", "labels")
        return [{name: batch[name].to(self.device) for name in names} for batch in batches]

    def train(
        self, run: Run, model: Any, rows: int, learning_rate: float, more: Sequence[dict[str, str]] = ()
    ) -> list[dict[str, Any]]:
        """Train in place on the first `rows` sentence pairs of every direction, and keep the best epoch's weights, or
        the last one's where the run prunes.

        Args:
            run: What is done.
            model: The model.
            rows: Sentence pairs of each direction.
            learning_rate: The peak.
            more: Further training rows, of other directions.

        Returns:
            For each epoch the development loss, also by direction, and the seconds that its training took.
        """
        examples = [*read_training_rows(self.data, list(run.pairs), rows), *more]
        steps = math.ceil(math.ceil(len(examples) / run.batch_size) / run.accumulation)
        warmup = math.ceil(0.06 * steps)
        epochs = EpochLosses(run.seed, lambda: self.development_losses(run, model, run.pairs))
        callbacks = [epochs, *([GradualPruning(**run.pruning)] if run.pruning else [])]
        arguments = {
            "learning_rate": learning_rate,
            "num_train_epochs": run.epochs,
            "per_device_train_batch_size": run.batch_size,
            "gradient_accumulation_steps": run.accumulation,
            "train_sampling_strategy": run.sampling,
            "lr_scheduler_type": run.schedule,
            "warmup_steps": warmup,
            "weight_decay": 0.0,
            "logging_steps": 10,
        }
        trainer = self._trainer(run, model, run.templates, arguments, train_dataset=examples, callbacks=callbacks)
        if run.method == "lora" and "values" in run.rates:  # what LANDeRMT's factors on v and o can have
            of_values = [weight for name, weight in model.named_parameters() if re.search(r"\.[vo]_proj\.lora_", name)]
            scale_rate(trainer.create_optimizer(), of_values, run.rates["values"])
        if run.schedule == "cosine":
            trainer.lr_scheduler = cosine_by_epoch(trainer.create_optimizer(), warmup, steps)
        trainer.train()
        with torch.no_grad():
            for name, weight in model.named_parameters():
                if name in epochs.best and not run.pruning:
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
        found = self._trainer(run, model, 1, {"per_device_eval_batch_size": 8}, eval_dataset=rows).evaluate()
        return found["eval_loss"], {pair: found[f"eval_loss_{pair}"] for pair in pairs}

    def _trainer(
        self, run: Run, model: Any, templates: int, arguments: Mapping[str, Any], **options: Any
    ) -> LanderTrainer:
        common = {"output_dir": tempfile.gettempdir(), "save_strategy": "no", "report_to": [], "disable_tqdm": True}
        return LanderTrainer(
            model=model,
            args=TrainingArguments(**common, seed=run.seed, use_cpu=self.device == "cpu", **arguments),
            data_collator=TranslationCollator(self.tokenizer, templates=TEMPLATES[:templates], seed=run.seed),
            processing_class=self.tokenizer,
            rates=run.rates,
            **options,
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
                options = {"batch_size": self.score_batch, "template": template}
                found = evaluate_translation(model, self.tokenizer, *texts, pair, **options)
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
        model = self.base.eval() if run.method in UNTRAINED else self._fit(run, result)
        result.setdefault("development_losses", {})
        result["scores"] = {str(test): {} for test in tests}
        pairs = pairs or run.pairs
        for own in (True, False):
            group = tuple(pair for pair in pairs if (pair in run.pairs) == own)
            if not group:
                continue
            if run.method in ROUTED and not own:
                model = model.merge_and_unload()  # an adapter serves only its own pairs; this shows the others
            measured = set(group) <= result["development_losses"].keys()
            if not measured and run.method != "few-shot":  # its examples are in the prompts that are scored
                loss, losses = self.development_losses(run, model, group)
                print(f"development loss {loss:.4f}", flush=True)
                result.setdefault("development_loss", loss)
                result["development_losses"] |= losses
            for test in tests:
                result["scores"][str(test)] |= self.score(run, model, test, group, keep)
        if tests:
            result["perplexity"] = {language: self.perplexity(model, language) for language in languages_of(pairs)}
        return result

    def _fit(self, run: Run, result: dict[str, Any]) -> Any:
        """The adapted model after training at the best learning rate; what was measured goes into `result`."""
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
        best = result["by_epoch"][-1] if run.pruning else lowest(result["by_epoch"])
        if run.pruning:
            trained = [weight for weight in model.parameters() if weight.requires_grad]
            result["nonzero_parameters"] = sum(int(weight.count_nonzero()) for weight in trained)
        result |= {name: best[name] for name in ("development_loss", "development_losses")}
        return model

    def perplexity(self, model: Any, language: str) -> float:
        """Of the development lines of one language as plain text, routed as a translation into it, or from it."""
        routed = getattr(model, "routed_language_pairs", [])
        fitting = [pair for side in (1, 0) for pair in routed if pair.split("-")[side] == language]
        routing = {"language_pairs": fitting[:1]} if fitting else {}
        texts = read_flores(self.data, *DEVELOPMENT, [language])[language]
        return math.exp(plain_text_loss(model, self.tokenizer, texts, **routing))

    def _development_loss_of(self, run: Run, learning_rate: float) -> float:
        candidate = self.make(run, run.search_rows)
        loss = lowest(self.train(run, candidate, run.search_rows, learning_rate))["development_loss"]
        print(f"lr {learning_rate:g}: development loss {loss:.4f}", flush=True)
        return loss


def _escaped(text: str) -> str:
    return text.replace("{", "{{").replace("}", "}}")
