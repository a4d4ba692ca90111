"""What speed.py measures: each section gives, for some measures, the values of every contender."""

from __future__ import annotations

import argparse
import copy
import gc
import itertools
import json
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from common import interleave, memory_now, memory_peak
from contenders import ADDED, COMPOSED, CONTENDERS, FORMS, OLD, PAIRS, Bench, spread_over
from peft import PeftModel
from peft.utils.hotswap import hotswap_adapter as peft_hotswap_adapter
from random_base import SHAPES
from runs import ROUTED, Run
from safetensors.torch import load_file
from speed_report import Measures
from torch import nn
from transformers import TrainingArguments
from transformers.data import default_data_collator

from peft_landermt import LanderTrainer, hotswap_adapter, split_adapter

WEIGHTS = "adapter_model.safetensors"


def make_step(model: Any, loss: Callable[[], torch.Tensor]) -> tuple[Callable[[], None], torch.optim.Optimizer | None]:
    """A training step: forward, backward and AdamW; and its optimizer, if there is anything to train."""
    trained = [weight for weight in model.parameters() if weight.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-5, weight_decay=0.0) if trained else None

    def step() -> None:
        loss().backward()
        if optimizer is not None:
            optimizer.step()
            optimizer.zero_grad()

    return step, optimizer


def state_bytes(optimizer: torch.optim.Optimizer | None) -> int:
    states = optimizer.state.values() if optimizer is not None else ()
    tensors = [value for state in states for value in state.values() if isinstance(value, torch.Tensor)]
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def training(bench: Bench, names: list[str] | None = None) -> Measures:
    """Steps with the model's own loss, all logits computed."""
    measures: Measures = {"step_seconds": {}, "trainable_parameters": {}, "optimizer_bytes": {}}
    steps, optimizers = {}, {}
    for name in names or bench.args.contenders:
        model = bench.make(name).train()
        inputs = {**bench.batch, **bench.routing(name, len(bench.batch["input_ids"])), "use_cache": False}
        steps[name], optimizers[name] = make_step(model, lambda model=model, inputs=inputs: model(**inputs).loss)
        trained = sum(weight.numel() for weight in model.parameters() if weight.requires_grad)
        measures["trainable_parameters"][name] = [trained]
    measures["step_seconds"] = interleave(steps, bench.repeats, bench.device)
    measures["optimizer_bytes"] = {name: [state_bytes(optimizer)] for name, optimizer in optimizers.items()}
    return measures


def trainer(bench: Bench) -> Measures:
    """The same steps through `LanderTrainer`, which asks for the logits of labelled positions only."""
    steps = {}
    with tempfile.TemporaryDirectory() as folder:
        options = {"output_dir": folder, "report_to": [], "use_cpu": bench.device == "cpu", "save_strategy": "no"}
        for name in ("full", "lora", "lander-1", "lander-10", "lslo-1", "lslo-10"):
            model = bench.make(name).train()
            through = LanderTrainer(model, TrainingArguments(**options), data_collator=default_data_collator)
            pairs = spread_over(list(CONTENDERS[name].pairs), len(bench.batch["input_ids"]))
            inputs = {**bench.batch, "language_pairs": pairs, "use_cache": False}
            steps[name], _ = make_step(
                model,
                lambda model=model, inputs=inputs, through=through: through.compute_loss(model, inputs),
            )
        return {"step_seconds": interleave(steps, bench.repeats, bench.device)}


def memory(bench: Bench) -> Measures:
    """Peak memory of two training steps above the base's weights, in a process for each, as peaks do not go down."""
    grown: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        saved = Path(folder) / "map.safetensors"
        bench.neuron_map.save(saved)
        for name in bench.args.contenders:
            command = [sys.executable, sys.argv[0], *sys.argv[1:], "--neuron-map", str(saved), "--memory-of", name]
            printed = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout
            grown[name] = [json.loads(printed.splitlines()[-1])]
    return {"peak_bytes": grown}


def memory_of(bench: Bench, name: str) -> int:
    for weight in bench.base.parameters():
        weight.data = weight.data.clone()  # out of the mapped file, so that all of it is counted before
    with torch.no_grad():
        bench.base(input_ids=bench.batch["input_ids"][:1, :2], use_cache=False)
    gc.collect()
    before = memory_now(bench.device)
    model = bench.adapt(CONTENDERS[name], bench.base).train()
    inputs = {**bench.batch, **bench.routing(name, len(bench.batch["input_ids"])), "use_cache": False}
    step, _ = make_step(model, lambda: model(**inputs).loss)
    step()
    step()
    return memory_peak(bench.device) - before


@torch.no_grad()
def inference(bench: Bench) -> Measures:
    """Forward and greedy decoding of one row, with adapters active, merged and disabled."""
    models = {"base": bench.view()}
    for name in ("lora", "shira", "lander-1", "paper-1", "lslo-1"):
        models[f"{name} active"] = bench.make(name)
        models[f"{name} merged"] = bench.make(name, own_weights=True).merge_and_unload()
        models[f"{name} disabled"] = bench.make(name)
        models[f"{name} disabled"].base_model.disable_adapter_layers()
    inputs = {"input_ids": bench.batch["input_ids"], "attention_mask": bench.batch["attention_mask"]}
    prompt = {name: value[:1, :16] for name, value in inputs.items()}
    tokens = bench.args.new_tokens
    options = {"min_new_tokens": tokens, "max_new_tokens": tokens, "do_sample": False, "pad_token_id": 0}
    forward, generate = {}, {}
    for name, model in models.items():
        model.eval()
        forward[name] = lambda model=model: model(**inputs, use_cache=False)
        generate[name] = lambda model=model: model.generate(**prompt, **options)
    generated = interleave(generate, bench.repeats, bench.device)
    return {
        "forward_seconds": interleave(forward, bench.repeats, bench.device),
        "token_seconds": {name: [value / tokens for value in values] for name, values in generated.items()},
    }


def load_all(bench: Bench, folders: Mapping[str, Path]) -> PeftModel:
    """The base with adapters loaded from their folders."""
    first, *others = folders
    model = PeftModel.from_pretrained(bench.view(), folders[first], adapter_name=first)
    for other in others:
        model.load_adapter(folders[other], adapter_name=other)
    return model.eval()


def save_ten(bench: Bench, name: str, output: Path) -> dict[str, Path]:
    """Ten pair adapters as folders: one of ours split, or one LoRA adapter ten times."""
    model = bench.make(name)
    if CONTENDERS[name].method in ROUTED:
        return split_adapter(model, output)
    for pair in PAIRS:
        model.save_pretrained(str(output / pair))
    return {pair: output / pair for pair in PAIRS}


@torch.no_grad()
def _forward_inputs(bench: Bench, rows: int) -> dict[str, Any]:
    batch = bench.make_batch(rows)
    return {"input_ids": batch["input_ids"], "attention_mask": batch["attention_mask"], "use_cache": False}


def mixed(bench: Bench) -> Measures:
    """Forward of a batch whose rows come from 1, 2, 5 and 10 pairs."""
    rows = 4 * bench.args.batch_size
    inputs = _forward_inputs(bench, rows)
    models = {"base": bench.view(), **{f"{form}-10": bench.make(f"{form}-10") for form in FORMS}}
    calls = {"base": lambda: models["base"](**inputs)}
    with tempfile.TemporaryDirectory() as folder:
        models["lora"] = load_all(bench, save_ten(bench, "lora", Path(folder)))
    for name, pairs in itertools.product(list(models)[1:], (1, 2, 5, 10)):
        keyword = "adapter_names" if name == "lora" else "language_pairs"
        routed = {**inputs, keyword: spread_over(PAIRS[:pairs], rows)}
        calls[f"{name}, {pairs} pairs"] = partial(models[name].eval(), **routed)
    return {"forward_seconds": interleave(calls, bench.repeats, bench.device)}


def grown(bench: Bench) -> Measures:
    """Forward of a batch through an adapter that grew: rows of one pair, and of old, new and composed ones."""
    rows = 4 * bench.args.batch_size
    inputs = _forward_inputs(bench, rows)
    kinds = {
        "one old pair": OLD[:1],
        "one new pair": ADDED[:1],
        "old pairs": OLD,
        "old, new and composed pairs": [*OLD, *ADDED, COMPOSED],
    }
    calls = {}
    for name, init_from in (("grown", None), ("grown from general", "general")):
        model = bench.grown(init_from).eval()
        calls |= {
            f"{name}, {kind}": partial(model, **inputs, language_pairs=spread_over(pairs, rows))
            for kind, pairs in kinds.items()
        }
    return {"forward_seconds": interleave(calls, bench.repeats, bench.device)}


def adapters(bench: Bench) -> Measures:
    """Switching, loading and exchanging pair adapters, and the size of their files."""
    switch, load, swap, undo = {}, {}, {}, {}
    sizes: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as temporary:
        for name in ("lora", "lander-10", "paper-10", "lslo-10"):
            ours = CONTENDERS[name].method in ROUTED
            folders = save_ten(bench, name, Path(temporary) / name)
            ten, one = load_all(bench, folders), load_all(bench, {PAIRS[0]: folders[PAIRS[0]]})
            following = itertools.cycle(PAIRS)
            switch[name] = lambda ten=ten, following=following: ten.set_adapter(next(following))
            file = folders[PAIRS[1]] / WEIGHTS
            load[f"{name}, load_file"] = lambda file=file: load_file(file, device=bench.device)
            load[f"{name}, load_file and copy"] = lambda file=file: [
                tensor.clone() for tensor in load_file(file, device=bench.device).values()
            ]
            load[f"{name}, load_adapter"] = lambda one=one, file=file: one.load_adapter(file.parent, "again")
            undo[f"{name}, load_adapter"] = lambda one=one: one.delete_adapter("again")
            exchange = hotswap_adapter if ours else peft_hotswap_adapter
            swap[name] = lambda ten=ten, folder=folders[PAIRS[0]], exchange=exchange: exchange(ten, folder, PAIRS[0])
            sizes[f"{name}, one of its pairs" if ours else name] = [file.stat().st_size]
        for name in ("shira", "lander-10", "paper-10", "lslo-10"):
            bench.make(name).save_pretrained(temporary)
            sizes[name] = [(Path(temporary) / WEIGHTS).stat().st_size]
        repeats = max(bench.repeats, 20)
        return {
            "set_adapter_seconds": interleave(switch, repeats, bench.device, warmup=len(PAIRS)),
            "load_seconds": interleave(load, repeats, bench.device, after=undo),
            "hotswap_seconds": interleave(swap, repeats, bench.device),
            "file_bytes": sizes,
        }


def detection(bench: Bench) -> Measures:
    """`detect_neurons` beside one plain forward and backward over the tokens that it passed through the model."""
    seen: list[tuple[bool, dict[str, Any]]] = []

    def record(_module: nn.Module, _args: Any, inputs: dict[str, Any]) -> None:
        kept = {key: inputs[key] for key in ("input_ids", "attention_mask")}
        kept["labels"] = kept["input_ids"].masked_fill(kept["attention_mask"] == 0, -100)
        seen.append((torch.is_grad_enabled(), kept))

    hook = bench.base.register_forward_pre_hook(record, with_kwargs=True)
    bench.detect()
    hook.remove()
    frozen, whole = bench.view(), bench.view().requires_grad_(True)
    frozen.enable_input_require_grads()

    def plain(model: Any, prompts: bool) -> None:
        for is_sentence, inputs in seen:
            if is_sentence or prompts:
                model(**inputs, use_cache=False).loss.backward()
        model.zero_grad()

    calls: dict[str, Callable[[], Any]] = {"detect_neurons": bench.detect}
    for text, prompts in (("sentences and prompts", True), ("sentences", False)):
        calls[f"{text}, weights frozen"] = lambda prompts=prompts: plain(frozen, prompts)
        calls[f"{text}, weight gradients"] = lambda prompts=prompts: plain(whole, prompts)
    return {"detection_seconds": interleave(calls, min(bench.repeats, 3), bench.device, warmup=1)}


GROWTH: dict[str, list[int]] = {
    "pairs": [1, 2, 5, 10],
    "layers": [1, 2, 4, 6],
    "d_ff": [1, 2, 4, 8],
    "batch": [1, 2, 4, 8],
}
"""Axes of `--grow` and their values; those of d_ff and batch multiply the shape's and half of the --batch-size."""


def grow(args: argparse.Namespace, axis: str, value: int) -> dict[str, Any]:
    """Costs on a random model where one number is changed."""
    chosen, options, layers, pairs = copy.copy(args), {}, 4, 1
    chosen.sentences = min(args.sentences, 4)
    if axis == "d_ff":
        value *= SHAPES[args.shape]["intermediate_size"] // 2
        options["intermediate_size"] = value
    elif axis == "batch":
        value *= max(args.batch_size // 2, 1)
        chosen.batch_size = value
    elif axis == "layers":
        layers = value
    else:
        pairs = value
    bench = Bench(chosen, num_layers=layers, **options)
    names = ["base", "full", "lora"]
    for form, fields in FORMS.items():
        CONTENDERS[form] = Run(pairs=tuple(PAIRS[:pairs]), **fields)
        names.append(form)
    measures = training(bench, names)
    inputs = {"input_ids": bench.batch["input_ids"], "use_cache": False}
    forward = {}
    for name in names[:1] + names[2:]:
        model, routing = bench.make(name).eval(), bench.routing(name, chosen.batch_size)
        forward[name] = torch.no_grad()(lambda model=model, routing=routing: model(**inputs, **routing))
    measures["forward_seconds"] = interleave(forward, args.repeats, args.device)
    measures["detection_seconds"] = interleave({"detect_neurons": bench.detect}, 1, args.device, warmup=0)
    return {"axis": axis, "value": value, "measures": measures}


SECTIONS: dict[str, Callable[[Bench], Measures]] = {
    "training": training,
    "trainer": trainer,
    "memory": memory,
    "inference": inference,
    "mixed": mixed,
    "grown": grown,
    "adapters": adapters,
    "detection": detection,
}
