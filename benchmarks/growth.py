"""Growth: German and French with English, then Chinese, then Arabic, or Arabic first; no earlier rows are seen again.

python benchmarks/growth.py --data DIR --model MODEL --rows 250 --results growth.jsonl
python benchmarks/growth.py --data DIR --arms "grown r=4" "LoRA, trained on" --orders "zh ar" --bleu 60

After every phase the development loss of all pairs so far is measured; with `--bleu`, at the end, also BLEU on
FLORES-200, there of composed pairs too, directly and by way of English. Every arm is independent of all others, so
several processes may run side by side, each with a results file of its own. What a results file holds is not done
again; in one process a first phase that several arms have in common is trained once.
"""

from __future__ import annotations

import argparse
import copy
import random
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
from adapters import lora
from common import CALIBRATION, append_result, languages_of, read_flores, read_results, read_test, read_training_rows
from growth_arms import ARMS, Arm
from peft import get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict
from run import add_base_options
from runs import Run, Test
from workbench import Workbench

from peft_landermt import (
    LanderConfig,
    NeuronMap,
    add_language_pairs,
    compose_language_pair,
    detect_neurons,
    evaluate_translation,
    translate,
)
from peft_landermt.ffn import find_ffns

FIRST = ("de", "fr")
ORDERS = {"zh ar": ("zh", "ar"), "ar zh": ("ar", "zh")}
COMPOSED = ("de-fr", "fr-de", "de-zh", "zh-de")
FIRST_TEST_LINE = 201


class First(NamedTuple):
    """A model after its first phase, what detection found for it, and how many parameters were trained."""

    model: Any
    found: NeuronMap | None
    trained: int


def pairs_of(languages: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(pair for language in languages for pair in (f"en-{language}", f"{language}-en"))


class Growth:
    """One arm at one rate in one order.

    Args:
        bench: The base and the corpora.
        arm: The arm.
        rate: Learning rate of later phases.
        args: The command line.
        firsts: Models after their first phase, by what they learned; a new one is added.
    """

    def __init__(
        self, bench: Workbench, arm: Arm, rate: float, args: argparse.Namespace, firsts: dict[str, First]
    ) -> None:
        self.bench, self.arm, self.rate, self.args, self.firsts = bench, arm, rate, args, firsts
        self.layers = len(find_ffns(bench.base))
        self.seen: tuple[str, ...] = ()
        self.losses: dict[str, float] = {}
        self.serving: dict[str, tuple[Any, list[str]]] = {}  # a model and its active adapters, by pair
        self.found: NeuronMap | None = None
        self.model: Any = None

    def run(self, pairs: tuple[str, ...]) -> Run:
        trainer = {"rates": {"factors_b": 2.0}} if self.arm.method == "lander" else {}
        options = {"epochs": self.args.epochs, "seed": self.args.seed, "options": self.arm.first, "trainer": trainer}
        return Run(self.arm.method, pairs, rows=self.args.rows, detection={"num_layers": self.layers}, **options)

    def phases(self, order: tuple[str, ...]) -> Iterator[dict[str, Any]]:
        """Go through the phases; what each gives."""
        steps = [FIRST, *((language,) for language in order)]
        steps = [tuple(language for step in steps for language in step)] if self.arm.way == "joint" else steps
        for number, languages in enumerate(steps):
            pairs, start = pairs_of(languages), time.perf_counter()
            rate = self.rate if number and self.arm.way != "anew" else self.arm.first_rate
            if self.arm.copied is not None and number > 1:
                rate *= self.arm.copied
            if self.arm.way == "base":
                trained = 0
            elif number:
                trained = self.learn(pairs, rate, number)
            else:
                trained = self.begin(pairs, rate)
            self.seen += pairs
            self.serving |= dict.fromkeys(pairs, (self.model, self.active()))
            if self.arm.way == "train on":
                self.serving = dict.fromkeys(self.seen, (self.model, self.active()))
            yield {
                "phase": number,
                "pairs": list(pairs),
                "learning_rate": rate,
                "trainable_parameters": trained,
                "seconds": time.perf_counter() - start,
                "losses": self.measure(self.seen),
            }

    def begin(self, pairs: tuple[str, ...], rate: float) -> int:
        """Train on the rows of the first phase, or take over a model that did."""
        key = repr((self.arm.method, self.arm.first, pairs, rate))
        if key not in self.firsts:
            trained = self.learn(pairs, rate, 0)
            self.firsts[key] = First(copy.deepcopy(self.model), self.found, trained)
            return trained
        first = self.firsts[key]
        self.model, self.found = copy.deepcopy(first.model), first.found
        return first.trained

    def learn(self, pairs: tuple[str, ...], rate: float, number: int) -> int:
        """Train on the rows of a phase; how many parameters were trained."""
        run, rows = self.run(pairs), self.args.rows
        more: list[dict[str, str]] = []
        if self.model is None or self.arm.way == "anew":
            self.model = self.make(run)
        elif self.arm.way == "grow":
            self.grow(pairs)
        elif self.arm.way == "stack":
            self.stack(number)
        elif self.arm.way == "copy":
            return self.train_copy(run, rate, number)
        elif self.arm.replay:
            earlier = read_training_rows(self.bench.data, list(self.seen), rows)
            more = random.Random(self.args.seed).sample(earlier, max(1, round(self.arm.replay * len(earlier))))
        trained = sum(weight.numel() for weight in self.model.parameters() if weight.requires_grad)
        self.bench.train(run, self.model, rows, rate, more)
        return trained

    def make(self, run: Run) -> Any:
        base = copy.deepcopy(self.bench.base)
        torch.manual_seed(self.args.seed)
        if self.arm.method == "lora":
            return get_peft_model(base, lora(**self.arm.first))
        self.found = self.bench.neuron_map(run)
        config = LanderConfig(
            task_type="CAUSAL_LM", neuron_map=self.found, language_pairs=list(run.pairs), **self.arm.first
        )
        return get_peft_model(base, config)

    def grow(self, pairs: tuple[str, ...]) -> None:
        texts = read_flores(self.bench.data, *CALIBRATION, languages_of(pairs))
        options = {"extends": self.found, "num_layers": self.layers, "progress": False}
        self.found = detect_neurons(self.bench.base, self.bench.tokenizer, texts, pairs, **options)
        torch.manual_seed(self.args.seed)
        added = list(self.model.peft_config["default"].added)
        start = {"init_from": added[-1]} if added and self.arm.copied is not None else {}
        add_language_pairs(self.model, self.found, pairs, **{**self.arm.options, **start})

    def add_lora(self, number: int, options: dict[str, Any], earlier: str | None) -> str:
        """Add the LoRA of a phase, a copy of an earlier one where there is one; its name."""
        torch.manual_seed(self.args.seed)
        name = f"phase{number}"
        self.model.add_adapter(name, lora(**options))
        if earlier in self.model.peft_config:
            state = get_peft_model_state_dict(self.model, adapter_name=earlier)
            set_peft_model_state_dict(self.model, state, adapter_name=name)
        return name

    def stack(self, number: int) -> None:
        last = None if self.arm.copied is None else f"phase{number - 1}"
        self.activate(self.model, ["default", self.add_lora(number, self.arm.options, last)])

    def train_copy(self, run: Run, rate: float, number: int) -> int:
        """Train the first components of a copy of the first adapter, which is served alone."""
        components = self.arm.options["components"]
        self.activate(self.model, [self.add_lora(number, self.arm.first, "default")])
        trained, hooks = 0, []
        for key, weight in self.model.named_parameters():
            if weight.requires_grad:
                of_component = torch.arange(weight.shape[0 if ".lora_A." in key else 1], device=weight.device)
                mask = (of_component < components).to(weight.dtype)
                mask = mask.unsqueeze(1 if ".lora_A." in key else 0)
                hooks.append(weight.register_hook(mask.mul))
                trained += int(mask.sum()) * weight.numel() // mask.numel()
        self.bench.train(run, self.model, self.args.rows, rate)
        for hook in hooks:
            hook.remove()
        return trained

    def active(self) -> list[str]:
        return list(self.model.active_adapters) if self.arm.way in ("stack", "copy") else []

    def activate(self, model: Any, names: list[str]) -> None:
        """Have adapters serve together; only the last is trained."""
        if names:
            model.base_model.set_adapter(names)
            for key, weight in model.named_parameters():
                weight.requires_grad_(".lora_" in key and f".{names[-1]}." in key)

    def served(self, pair: str) -> Any:
        """The model that serves a pair, ready for it."""
        model, names = self.serving.get(pair, (self.model or self.bench.base, self.active()))
        self.activate(model, names)
        return model or self.bench.base

    def measure(self, pairs: tuple[str, ...]) -> dict[str, float]:
        """Development loss of pairs, one after the other."""
        found = {}
        for pair in pairs:
            run = self.run((pair,))
            found[pair] = self.bench.development_losses(run, self.served(pair), (pair,))[1][pair]
        if self.model is not None and self.active():
            self.activate(self.model, self.active())
        return found

    def compose(self) -> dict[str, Any]:
        """Losses of pairs that nobody trained."""
        if self.arm.way == "grow":
            for pair in COMPOSED:
                compose_language_pair(self.model, pair)
        return {"losses_composed": self.measure(COMPOSED)}

    def bleu(self, lines: int) -> dict[str, Any]:
        """BLEU on FLORES-200 of all pairs, and of composed ones, directly and by way of English."""
        test = Test("flores", FIRST_TEST_LINE, FIRST_TEST_LINE + lines - 1)
        direct: dict[str, float] = {}
        for pair in (*self.seen, *COMPOSED):
            direct |= {
                name: score["bleu"]
                for name, score in self.bench.score(self.run((pair,)), self.served(pair), test, (pair,)).items()
            }
        pivoted = {}
        for pair in COMPOSED:
            source, target = pair.split("-")
            texts = read_test(self.bench.data, test.name, pair, test.first, test.last)
            assert texts is not None
            options = {"batch_size": self.bench.score_batch}
            english = translate(self.served(f"{source}-en"), self.bench.tokenizer, texts[0], f"{source}-en", **options)
            onward = f"en-{target}"
            english = [line[: self.args.longest] or "." for line in english]
            found = evaluate_translation(
                self.served(onward), self.bench.tokenizer, english, texts[1], onward, **options
            )
            pivoted[pair] = found.bleu
        return {"test": str(test), "bleu_direct": direct, "bleu_pivoted": pivoted}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with train/, flores200/ and test/")
    add_base_options(parser)
    parser.add_argument("--score-batch", type=int, default=30, help="sentences that are translated together")
    parser.add_argument(
        "--arms", nargs="+", choices=ARMS, default=list(ARMS), metavar="ARM", help=", ".join(ARMS).replace("%", "%%")
    )
    parser.add_argument("--orders", nargs="+", choices=ORDERS, default=list(ORDERS), metavar="ORDER")
    parser.add_argument("--rates", nargs="+", type=float, help="of later phases (default: those of each arm)")
    parser.add_argument("--rows", type=int, default=250, help="of each direction (default: %(default)s)")
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--bleu", type=int, default=0, help="FLORES lines to translate at the end (default: none)")
    parser.add_argument(
        "--longest",
        type=int,
        default=600,
        help="letters of an English translation that is translated on; longer ones go round in circles",
    )
    parser.add_argument("--results", type=Path, help="JSON lines; what it holds is not done again")
    args = parser.parse_args()
    bench = Workbench(
        args.data, args.model, args.dtype, args.device, attention=args.attention, score_batch=args.score_batch
    )
    done = [] if args.results is None else read_results(args.results)
    firsts: dict[str, First] = {}
    for name in args.arms:
        arm = ARMS[name]
        for rate in args.rates or arm.rates:
            for order in args.orders if arm.way != "joint" else args.orders[:1]:
                key = {
                    **{"experiment": "growth", "arm": name, "rate": rate, "order": order},
                    **{"model": Path(args.model).name, "dtype": args.dtype},
                    **{option: getattr(args, option) for option in ("rows", "epochs", "seed", "bleu")},
                }
                if any(line.get("end") and key.items() <= line.items() for line in done):
                    print(f"{name}, {rate:g}, {order}: done")
                    continue
                follow(Growth(bench, arm, key["rate"], args, firsts), key)


def follow(growth: Growth, key: dict[str, Any]) -> None:
    """Do one run, and add a line for every phase."""
    args = growth.args
    for result in growth.phases(ORDERS[key["order"]]):
        shown = " ".join(f"{pair} {loss:.4f}" for pair, loss in result["losses"].items())
        print(f"{key['arm']}, {key['rate']:g}, {key['order']}, phase {result['phase']}: {shown}", flush=True)
        append_result(args.results, {**key, **result})
    result = growth.compose()
    result |= growth.bleu(args.bleu) if args.bleu else {}
    print(f"{key['arm']}: {result}", flush=True)
    append_result(args.results, {**key, **result, "end": True})


if __name__ == "__main__":
    main()
