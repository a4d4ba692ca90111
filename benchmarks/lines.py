"""Lines of results as tables name them: what a run was, in words; which runs differ in their seed alone."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from itertools import groupby
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from common import read_results
from programme import LINEAR
from runs import FFNS_ALONE, LANDER, Run

Line = dict[str, Any]

METHODS = {
    "zero-shot": "0-shot",
    "few-shot": "5 examples in the prompt",
    "full": "full finetuning",
    "adapter": "bottleneck adapters",
    "lora": "LoRA",
    "lora-ffn": "LoRA on the relevant FFNs",
    "lora-attention": "LoRA on attention",
    "adapter-lora": "bottleneck adapters and LoRA",
    "lander": "LANDeRMT",
    "lander-lora": "LANDeRMT, and LoRA on attention",
    "lslo": "LSLo",
    "shira": "SHiRA",
}


def read_lines(path: Path) -> list[Line]:
    """Lines of a file in today's form; early ones named less."""
    return [_today(line) for line in read_results(path)]


def _today(line: Line) -> Line:
    if "mean_bleu" in line:
        first, last = line["test_lines"]
        detection = {"num_layers": line["num_layers"]} if line["method"] in LANDER else {}
        scores = {f"flores {first} to {last}": line["scores"]}
        line = {"row_lr_ratio": 1.0, **line, "scores": scores, "detection": detection}
    options = line.get("options", {})
    if line["method"] == "lora" and "target_modules" not in options:
        line = {**line, "options": {**options, "target_modules": LINEAR}}
    return line


def matches(line: Line, wanted: Mapping[str, str]) -> bool:
    """Whether a line is of these runs: fields have the values; `pairs` is their number, `like` a pattern of labels."""
    shown = {**line, "pairs": len(line["pairs"])}
    fields = {name: value for name, value in wanted.items() if name != "like"}
    alike = re.search(wanted.get("like", ""), label(line)) is not None
    return alike and all(str(shown.get(name)) in value.split(",") for name, value in fields.items())


def label(line: Line) -> str:
    """Method, place and form."""
    parts = [METHODS[line["method"]]]
    detection = dict(line.get("detection", {}))
    if line["method"] in (*LANDER, "lora-ffn"):
        parts.append(f"k={detection.pop('num_layers')}")
    parts += [
        f"{name}={value}" for name, value in detection.items() if (name, value) != ("activation_statistic", "mean")
    ]
    options = line.get("options", {})
    if line["method"] in LANDER:
        options = _told(options)
    parts += [shown for name, value in options.items() if (shown := _option(name, value))]
    if line["method"] in LANDER:
        run = Run.from_dict(line)
        if run.form == "both" and "rows" in run.rates:
            parts.append(f"rows at {run.rates['rows']:g}")
        if "factors_b" in run.rates:
            parts.append(f"B at {run.rates['factors_b']:g}")
    if "values" in (rates := line.get("trainer", {}).get("rates", {})):
        parts.append(f"v and o at {rates['values']:g}")
    if line.get("schedule", "cosine") != "cosine":
        parts.append(line["schedule"].replace("_", " "))
    if line.get("pruning"):
        each = " in each layer" if line["pruning"].get("scope") == "layer" else ""
        parts.append(f"pruned by {line['pruning']['ratio']:g}{each}")
    return ", ".join([*parts, *([line["control"]] if line.get("control") else [])])


def _told(options: Mapping[str, Any]) -> dict[str, Any]:
    """Options of LANDeRMT that a label tells, form first: what differs from factors of rank 16 and whole rows of
    specific neurons, on all projections of FFNs alone; and with attention always that of neurons."""
    usual = {**FFNS_ALONE, "attention_layers": "all", "attention_rank": 16}
    told = {name: value for name, value in options.items() if name not in usual or value != usual[name]}
    if options["attention_modules"]:
        told |= {name: options[name] for name in ("projections", "specific_rank")}
    order = ["attention_modules", "attention_layers", "attention_rank", "projections", "general_rank", "specific_rank"]
    return {name: told[name] for name in [*(name for name in order if name in told), *told]}


def _option(name: str, value: Any) -> str:
    if name == "target_modules":
        return "all linear layers" if value == LINEAR else " ".join(part.removesuffix("_proj") for part in value)
    if name == "attention_modules":
        return f"attention {' '.join(value)}" if value else ""
    if name == "attention_layers":
        return "" if value == "all" else f"attention of {value} layers"
    if name == "projections":
        return f"{value} projections"
    if name.endswith("_rank"):
        kind = name.removesuffix("_rank")
        return f"{kind} rows" if value is None else f"{kind} r={value}"
    if isinstance(value, dict):
        value = ", ".join(f"{key} {each}" for key, each in value.items())
    elif isinstance(value, list):
        runs = [(word, len(list(same))) for word, same in groupby(map(str, value))]
        value = "/".join(word if count == 1 else f"{word}×{count}" for word, count in runs)
    return f"{name}={value}"


def first_epoch(line: Line) -> float | None:
    """Development loss after the first epoch, where that does not depend on how many there were."""
    if line.get("schedule", "cosine") == "cosine" and line.get("by_epoch"):
        return line["by_epoch"][0]["development_loss"]
    return line.get("development_loss")


class Group:
    """Runs of one epoch that differ in their seed alone."""

    def __init__(self, line: Line) -> None:
        self.label = label(line)
        self.rate: float | None = line.get("learning_rate")
        self.trained: int | None = line.get("trainable_parameters")
        self.by_seed: dict[int, Line] = {}

    @property
    def loss_by_seed(self) -> dict[int, float]:
        found = {seed: first_epoch(line) for seed, line in self.by_seed.items()}
        return {seed: loss for seed, loss in found.items() if loss is not None}

    @property
    def losses(self) -> list[float]:
        return list(self.loss_by_seed.values())

    def scores(self, metric: str) -> list[float]:
        """Of every seed, the mean over directions."""
        tests = [next(iter(line["scores"].values())) for line in self.by_seed.values() if line["scores"]]
        return [fmean(row[metric] for row in test.values()) for test in tests]


def groups(lines: Iterable[Line]) -> list[Group]:
    """Put runs together that differ in their seed alone; of a run that was done twice, the first counts."""
    found: dict[str, Group] = {}
    for line in lines:
        if line.get("schedule", "cosine") != "cosine":
            continue
        named = {name: line.get(name) for name in ("model", "dtype", "rows", "pairs", "learning_rate")}
        group = found.setdefault(json.dumps([label(line), named]), Group(line))
        group.by_seed.setdefault(line["seed"], line)
    return list(found.values())


def best(candidates: Iterable[Group]) -> Group:
    """The group whose first seed has the lowest loss, or no loss: that is how rates are chosen."""
    return min(candidates, key=lambda group: next(iter(group.losses), 0.0))


def spread(values: list[float], digits: int) -> str:
    """The mean; of several seeds with its standard deviation and their number."""
    if not values:
        return ""
    several = f" ± {stdev(values):.{digits}f} ({len(values)})" if len(values) > 1 else ""
    return f"{fmean(values):.{digits}f}{several}"
