"""Train and score one method on real parallel text.

    python benchmarks/finetune.py --data DIR --method lander --pairs en-de de-en --lr 1e-3

`--data` names a folder with `train/en-XX.tsv.gz` and `flores200/devtest.XX.txt.gz`. Every method sees the same rows in
the same order through the same trainer. With several `--lr` the learning rate is chosen on FLORES lines 101 to 140 by
the loss after training on the first `--search-rows` rows of each direction; the test lines are never looked at.
"""

from __future__ import annotations

import argparse
import copy
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from common import append_result, read_flores, read_training_rows
from peft import LoraConfig, get_peft_model
from transformers import TrainingArguments, set_seed

from peft_landermt import (
    LanderConfig,
    LanderTrainer,
    NeuronMap,
    TranslationCollator,
    detect_neurons,
    evaluate_translation,
)
from peft_landermt.demo import load_base
from peft_landermt.translation import TEMPLATES

METHODS = ("zero-shot", "lander", "lora", "lora-ffn", "full")


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with train/ and flores200/")
    parser.add_argument("--method", choices=METHODS, default="lander")
    parser.add_argument("--pairs", nargs="+", default=["en-de", "de-en", "en-fr", "fr-en", "en-zh", "zh-en"])
    parser.add_argument("--rows", type=int, default=400, help="sentence pairs per direction")
    parser.add_argument("--epochs", type=float, default=1)
    parser.add_argument("--lr", type=float, nargs="+", default=[1e-3])
    parser.add_argument(
        "--search-rows", type=int, default=100, help="rows per direction for choosing among several --lr"
    )
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--accumulation", type=int, default=1)
    parser.add_argument(
        "--sampling", choices=("group_by_length", "random"), default="group_by_length",
        help="which rows share a batch; alike ones need half the padding",
    )  # fmt: skip
    parser.add_argument("--templates", type=int, default=1, help="how many of the ten prompt templates to draw from")
    parser.add_argument("--test-lines", type=int, nargs=2, default=[201, 260], help="FLORES lines to score; 0 0: none")
    parser.add_argument("--model", default="demo", help="'demo', a GGUF file, a folder or a Hub id")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, help="JSON lines file that the result is added to")
    lander = parser.add_argument_group("lander")
    lander.add_argument("--num-layers", type=int, default=4)
    lander.add_argument("--general-ratio", type=float, default=0.9)
    lander.add_argument("--general-rank", type=int, default=16, help="0: whole rows, as in the paper")
    lander.add_argument("--car", default="off")
    lander.add_argument("--inactive-neurons", default="keep")
    lander.add_argument("--tune", default="pair")
    lander.add_argument("--row-lr-ratio", type=float, default=0.1, help="learning rate of rows beside factors")
    lander.add_argument("--neuron-map", type=Path, help="use this map, or write it here if it does not exist")
    parser.add_argument("--lora-rank", type=int, default=16)
    return parser.parse_args()


def find_neurons(args: argparse.Namespace, base: Any, tokenizer: Any) -> NeuronMap:
    """The neuron map from FLORES lines 1 to 32."""
    if args.neuron_map is not None and args.neuron_map.exists():
        return NeuronMap.load(args.neuron_map)
    languages = sorted({language for pair in args.pairs for language in pair.split("-")})
    found = detect_neurons(
        base,
        tokenizer,
        read_flores(args.data, 1, 32, languages),
        args.pairs,
        num_layers=args.num_layers,
        general_ratio=args.general_ratio,
    )
    if args.neuron_map is not None:
        found.save(args.neuron_map)
    return found


def make_model(args: argparse.Namespace, base: Any, neuron_map: NeuronMap | None) -> Any:
    """A fresh copy of the base with the method's adapter."""
    model = copy.deepcopy(base)
    if args.method == "lander":
        config = LanderConfig(
            task_type="CAUSAL_LM",
            neuron_map=neuron_map,
            language_pairs=args.pairs,
            general_rank=args.general_rank or None,
            car=args.car,
            inactive_neurons=args.inactive_neurons,
            tune=args.tune,
        )
        return get_peft_model(model, config)
    if args.method in ("lora", "lora-ffn"):
        targets: Any = "all-linear"
        if args.method == "lora-ffn":
            assert neuron_map is not None
            layers = sorted({layer for pair in args.pairs for layer in neuron_map.layers(pair)})
            names = "|".join(neuron_map.neurons[layer].name.replace(".", r"\.") for layer in layers)
            targets = rf"({names})\.\w+"
        options = {"r": args.lora_rank, "lora_alpha": 2 * args.lora_rank, "target_modules": targets}
        return get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", **options))
    return model


def train(args: argparse.Namespace, model: Any, tokenizer: Any, rows: list[dict[str, str]], lr: float) -> float:
    """Train in place; return the seconds it took."""
    with tempfile.TemporaryDirectory() as folder:
        trainer = LanderTrainer(
            model=model,
            args=TrainingArguments(
                output_dir=folder,
                learning_rate=lr,
                num_train_epochs=args.epochs,
                per_device_train_batch_size=args.batch_size,
                gradient_accumulation_steps=args.accumulation,
                lr_scheduler_type="cosine",
                warmup_steps=0.06,
                weight_decay=0.0,
                train_sampling_strategy=args.sampling,
                logging_steps=10,
                save_strategy="no",
                report_to=[],
                seed=args.seed,
                use_cpu=args.device == "cpu",
                disable_tqdm=True,
            ),
            data_collator=TranslationCollator(tokenizer, templates=TEMPLATES[: args.templates], seed=args.seed),
            train_dataset=rows,
            processing_class=tokenizer,
            row_lr_ratio=args.row_lr_ratio,
        )
        start = time.perf_counter()
        trainer.train()
        return time.perf_counter() - start


@torch.no_grad()
def development_loss(args: argparse.Namespace, model: Any, tokenizer: Any) -> float:
    """Mean token loss on FLORES lines 101 to 140 of all directions."""
    languages = sorted({language for pair in args.pairs for language in pair.split("-")})
    texts = read_flores(args.data, 101, 140, languages)
    rows = [
        {"source": s, "target": t, "language_pair": pair}
        for pair in args.pairs
        for s, t in zip(*(texts[language] for language in pair.split("-")), strict=True)
    ]
    with tempfile.TemporaryDirectory() as folder:
        trainer = LanderTrainer(
            model=model,
            args=TrainingArguments(
                output_dir=folder,
                per_device_eval_batch_size=8,
                report_to=[],
                use_cpu=args.device == "cpu",
                disable_tqdm=True,
            ),
            data_collator=TranslationCollator(tokenizer, templates=TEMPLATES[:1]),
            eval_dataset=rows,
            processing_class=tokenizer,
        )
        return trainer.evaluate()["eval_loss"]


def main() -> None:
    args = parse_arguments()
    base, tokenizer = load_base(args.model, getattr(torch, args.dtype), args.device)
    neuron_map = find_neurons(args, base, tokenizer) if args.method in ("lander", "lora-ffn") else None
    if neuron_map is not None:
        print({pair: neuron_map.layers(pair) for pair in args.pairs})
    result: dict[str, Any] = {
        name: value for name, value in vars(args).items() if name not in ("data", "output", "neuron_map")
    }
    result["neuron_map"] = neuron_map.signature if neuron_map is not None else None

    model, learning_rate = base, args.lr[0]
    if args.method != "zero-shot":
        if len(args.lr) > 1:
            losses = {}
            for lr in args.lr:
                set_seed(args.seed)
                candidate = make_model(args, base, neuron_map)
                train(args, candidate, tokenizer, read_training_rows(args.data, args.pairs, args.search_rows), lr)
                losses[lr] = development_loss(args, candidate, tokenizer)
                print(f"lr {lr:g}: development loss {losses[lr]:.4f}", flush=True)
            learning_rate = min(losses, key=lambda lr: losses[lr])
            result["search"] = losses
        set_seed(args.seed)
        model = make_model(args, base, neuron_map)
        rows = read_training_rows(args.data, args.pairs, args.rows)
        result["trainable_parameters"] = sum(p.numel() for p in model.parameters() if p.requires_grad)
        result["train_seconds"] = train(args, model, tokenizer, rows, learning_rate)
    result["learning_rate"] = learning_rate
    result["development_loss"] = development_loss(args, model, tokenizer)
    print(f"development loss {result['development_loss']:.4f}", flush=True)

    first, last = args.test_lines
    if last:
        languages = sorted({language for pair in args.pairs for language in pair.split("-")})
        texts = read_flores(args.data, first, last, languages)
        result["scores"] = {}
        print(f"| {args.method}, FLORES {first} to {last} | BLEU | chrF++ |\n|---|---|---|")
        for pair in args.pairs:
            source, target = pair.split("-")
            score = evaluate_translation(model, tokenizer, texts[source], texts[target], pair, batch_size=30)
            result["scores"][pair] = {
                "bleu": score.bleu,
                "chrf": score.chrf,
                "runaway": score.num_runaway,
                "signature": score.bleu_signature,
            }
            print(f"| {pair} | {score.bleu:.2f} | {score.chrf:.2f} |", flush=True)
        for name in ("bleu", "chrf"):
            result[f"mean_{name}"] = sum(row[name] for row in result["scores"].values()) / len(args.pairs)
        print(f"| mean | {result['mean_bleu']:.2f} | {result['mean_chrf']:.2f} |")
    append_result(args.output, result)


if __name__ == "__main__":
    main()
