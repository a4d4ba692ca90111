"""What `landermt quickstart` does, stage by stage."""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel, get_peft_model
from peft.utils import SAFETENSORS_WEIGHTS_NAME
from transformers import TrainingArguments, set_seed

from ..demo import DemoCorpus, load_demo_corpus
from ..detection import detect_neurons
from ..errors import AdapterError, ConfigError
from ..lander import LanderConfig
from ..language_pair import parse_pairs
from ..neuron_map import NeuronMap
from ..routed.adapters import split_adapter
from ..seq2seq import is_encoder_decoder
from ..translation import (
    TEMPLATES,
    LanderTrainer,
    TranslationCollator,
    TranslationScores,
    evaluate_translation,
    translate,
)
from ..translation.training_arguments import by_length, warmup
from .options import load_model, task_type, with_texts
from .outputs import claim_folder, write_json

_WRITTEN = ("neuron_map.safetensors", "adapter/*", "pairs/*/*", "scores_*.json", "results.json")
"""Files in `--output`."""

_COMPARED = 4
"""Sentences per direction whose translations by the reloaded adapters are compared with those in memory."""


@dataclass
class _Stages:
    """Seconds of every stage."""

    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def stage(self, name: str, text: str) -> Iterator[None]:
        print(f"{text} ...", flush=True)
        start = time.perf_counter()
        yield
        self.seconds[name] = round(time.perf_counter() - start, 1)


def run_stages(options: argparse.Namespace) -> None:
    """Run the command."""
    corpus = _check(options)
    if options.output:
        _run(options, corpus, Path(options.output))
    else:
        with tempfile.TemporaryDirectory(prefix="landermt-") as folder:
            _run(options, corpus, Path(folder))


def _check(options: argparse.Namespace) -> DemoCorpus:
    """Check everything that can be wrong, before the model is loaded."""
    if options.output:
        claim_folder(options, _WRITTEN)
    corpus = load_demo_corpus()
    parse_pairs(options.pairs, "--pairs")
    for pair in options.pairs:
        corpus.pair(pair)
    limits = {
        "calibration_sentences": len(corpus.calibration["en"]),
        "train_sentences": len(corpus.train["en"]),
        "test_sentences": len(corpus.test["en"]),
    }
    for name, limit in limits.items():
        if not 1 <= getattr(options, name) <= limit:
            raise ConfigError(f"--{name.replace('_', '-')}", getattr(options, name), f"must be from 1 to {limit}.")
    for name in ("epochs", "lr", "batch_size", "num_layers"):
        if getattr(options, name) != "all" and not getattr(options, name) > 0:
            raise ConfigError(f"--{name.replace('_', '-')}", getattr(options, name), "must be positive.")
    return corpus


def _run(options: argparse.Namespace, corpus: DemoCorpus, output: Path) -> None:
    pairs, stages = options.pairs, _Stages()
    set_seed(options.seed)
    with stages.stage("load", "Loading the base model (converted once, then cached)"):
        base, tokenizer = load_model(options)
    with stages.stage("evaluate_before", "Translating held-out sentences with the base model"):
        before = _evaluate(base, tokenizer, corpus, options)
    with stages.stage("detect", "Detecting language-aware neurons"):
        neuron_map = _detect(base, tokenizer, corpus, options)
        neuron_map.save(output / "neuron_map.safetensors")
        for pair in pairs:
            print(f"  {pair}: layers {neuron_map.layers(pair)}")
    options_of = {"neuron_map": neuron_map, "language_pairs": pairs, "save_dtype": "bf16"}
    model = get_peft_model(base, LanderConfig(task_type=task_type(base), **options_of))
    trainable, _ = model.get_nb_trainable_parameters()
    with stages.stage("train", f"Tuning {trainable:,} parameters on {', '.join(pairs)}"):
        _train(model, tokenizer, corpus, options, output)
    with stages.stage("save_and_split", "Saving the adapter, and one adapter per pair"):
        with torch.no_grad():
            for weight in filter(lambda weight: weight.requires_grad, model.parameters()):
                weight.copy_(weight.to(torch.bfloat16))  # as it is saved, so that translations can be compared
        model.save_pretrained(str(output / "adapter"))
        folders = split_adapter(model, output / "pairs")
        compared = {pair: _compared(model, tokenizer, corpus, pair) for pair in pairs}
    with stages.stage("reload", "Loading the pairs' adapters into a fresh base model through PEFT"):
        fresh, _ = load_model(options)
        reloaded = _reload(fresh, folders)
    with stages.stage("evaluate_after", "Translating with the reloaded adapters, swapping between them"):
        after = {}
        for pair in pairs:
            reloaded.set_adapter(pair)
            if _compared(reloaded, tokenizer, corpus, pair) != compared[pair]:
                raise AdapterError("adapter", pair, "translates otherwise after reloading; please report this.")
            after.update(_evaluate(reloaded, tokenizer, corpus, options, [pair]))

    for name, scores in (("before", before), ("after", after)):
        texts = {pair: [lines[: options.test_sentences] for lines in corpus.pair(pair)] for pair in pairs}
        write_json(output / f"scores_{name}.json", {pair: with_texts(scores[pair], *texts[pair]) for pair in pairs})
    sizes = {pair: (folder / SAFETENSORS_WEIGHTS_NAME).stat().st_size for pair, folder in folders.items()}
    results = {
        "pairs": {
            pair: {
                "bleu_before": before[pair].bleu,
                "bleu_after": after[pair].bleu,
                "chrf_before": before[pair].chrf,
                "chrf_after": after[pair].chrf,
                "adapter_bytes": sizes[pair],
            }
            for pair in pairs
        },
        "trainable_parameters": trainable,
        "seconds": stages.seconds,
        "signature": f"{neuron_map.signature}|{after[pairs[0]].bleu_signature}|{after[pairs[0]].chrf_signature}",
    }
    write_json(output / "results.json", results)
    _print_results(results, before, after, corpus)
    if options.output:
        base = f"--model {options.model} " if options.model else ""  # else the one that the adapters name
        trial = f"landermt translate {base}--adapter {folders[pairs[0]]} --pair {pairs[0]}"
        print(f"\nAdapters and results are in {output}. Try:\n  echo 'Good morning.' | {trial}")


def _detect(base: Any, tokenizer: Any, corpus: DemoCorpus, options: argparse.Namespace) -> NeuronMap:
    languages = sorted({language for pair in options.pairs for language in pair.split("-")})
    sentences = {language: corpus.calibration[language][: options.calibration_sentences] for language in languages}
    return detect_neurons(base, tokenizer, sentences, options.pairs, num_layers=options.num_layers)


def _train(model: Any, tokenizer: Any, corpus: DemoCorpus, options: argparse.Namespace, output: Path) -> None:
    by_pair: dict[str, int] = {}
    rows = []
    for row in corpus.training_rows(options.pairs):
        by_pair[row["language_pair"]] = by_pair.get(row["language_pair"], 0) + 1
        if by_pair[row["language_pair"]] <= options.train_sentences:
            rows.append(row)
    trainer = LanderTrainer(
        model=model,
        args=TrainingArguments(
            output_dir=str(output / "checkpoints"),
            num_train_epochs=options.epochs,
            learning_rate=options.lr,
            lr_scheduler_type="cosine",
            **warmup(0.1),
            per_device_train_batch_size=options.batch_size,
            **by_length(),
            save_strategy="no",
            logging_strategy="no",
            report_to=[],
            seed=options.seed,
            use_cpu=model.device.type == "cpu",
        ),
        data_collator=TranslationCollator(
            tokenizer,
            templates=None if is_encoder_decoder(model) else TEMPLATES[:1],
            seed=options.seed,
            encoder_decoder=is_encoder_decoder(model),
        ),
        train_dataset=rows,
        processing_class=tokenizer,
    )
    trainer.train()


def _evaluate(
    model: Any, tokenizer: Any, corpus: DemoCorpus, options: argparse.Namespace, pairs: list[str] | None = None
) -> dict[str, TranslationScores]:
    scores = {}
    for pair in pairs or options.pairs:
        sources, references = (texts[: options.test_sentences] for texts in corpus.pair(pair))
        scores[pair] = evaluate_translation(model, tokenizer, sources, references, pair, batch_size=32, progress=True)
    return scores


def _compared(model: Any, tokenizer: Any, corpus: DemoCorpus, pair: str) -> list[str]:
    return translate(model, tokenizer, corpus.pair(pair)[0][:_COMPARED], pair)


def _reload(base: Any, folders: dict[str, Path]) -> Any:
    """Load a fresh model with every pair's adapter under the pair's name."""
    (first, folder), *others = folders.items()
    model = PeftModel.from_pretrained(base, str(folder), adapter_name=first)
    for pair, other in others:
        model.load_adapter(str(other), adapter_name=pair)
    return model


def _print_results(
    results: dict[str, Any],
    before: dict[str, TranslationScores],
    after: dict[str, TranslationScores],
    corpus: DemoCorpus,
) -> None:
    print("\n| pair | BLEU before | BLEU after | chrF++ before | chrF++ after | adapter |\n|---|---|---|---|---|---|")
    for pair, row in results["pairs"].items():
        scores = " | ".join(f"{row[key]:.2f}" for key in ("bleu_before", "bleu_after", "chrf_before", "chrf_after"))
        print(f"| {pair} | {scores} | {row['adapter_bytes'] / 1e6:.2f} MB |")
    count = len(results["pairs"])
    means = [sum(row[key] for row in results["pairs"].values()) / count for key in ("bleu_before", "bleu_after")]
    print(f"| mean | {means[0]:.2f} | {means[1]:.2f} | | | |")
    print(f"\ntrainable parameters: {results['trainable_parameters']:,}")
    print("seconds: " + ", ".join(f"{name} {value:.0f}" for name, value in results["seconds"].items()))
    for pair in results["pairs"]:
        source = corpus.pair(pair)[0][0]
        print(f"\n{pair}  {source}\n  before  {before[pair].hypotheses[0]}\n  after   {after[pair].hypotheses[0]}")
