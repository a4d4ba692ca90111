"""What is done, as plain data: a run is a method with its place, form, rates and rows; a test, lines of a test set."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, get_args

from peft_landermt import LanderConfig
from peft_landermt.choices import Role

FFNS_ALONE: Mapping[str, Any] = {
    "general_rank": 16, "specific_rank": None, "projections": "all", "attention_modules": None
}  # fmt: skip
"""Factors of rank 16 on general neurons, whole rows on specific ones, nothing in attention: the first runs' form."""
PAPER: Mapping[str, Any] = {
    **FFNS_ALONE, "general_rank": None, "car": "paper", "inactive_neurons": "drop"
}  # fmt: skip
"""`LanderConfig.paper`."""
UNTRAINED = ("zero-shot", "few-shot")
LORA = ("lora", "lora-ffn", "lora-attention", "adapter-lora")
LANDER = ("lander", "lander-lora")
"""`lander-lora` has LoRA in the attention, which LANDeRMT leaves alone; at the scale of LANDeRMT's factors."""
ROUTED = (*LANDER, "lslo")
"""Methods whose adapters serve their own directions only."""
METHODS = (*UNTRAINED, "full", "adapter", "shira", *LORA, *ROUTED)


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
        schedule: Of the learning rate. `"cosine"` is, in each epoch anew, a warm-up of 6% of it and a cosine down to
            zero, so that a run of three epochs also tells what one and two give. Other names of `TrainingArguments`
            are for all epochs together, after the same warm-up.
        templates: How many of the ten prompt templates are drawn from.
        seed: Of initial weights, order and templates; and of `control`.
        detection: Options of `detect_neurons`.
        options: Options of `LanderConfig`, `LsloConfig`, `LoraConfig`, `ShiraConfig` or `add_bottlenecks`.
        trainer: Options of `LanderTrainer`.
        pruning: Options of `GradualPruning`; none: nothing is pruned. What is pruned is kept as the last epoch leaves
            it.
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
    pruning: Mapping[str, Any] = field(default_factory=dict)
    control: str = ""

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            raise ValueError(f"method={self.method!r}: must be one of {', '.join(METHODS)}.")
        if self.method in LANDER:  # as a run of LANDeRMT names its form, it means the same under other defaults
            object.__setattr__(self, "options", {**self.options, **_rest_of_form(self.options)})

    def to_dict(self) -> dict[str, Any]:
        return json.loads(json.dumps(dataclasses.asdict(self)))

    @classmethod
    def from_dict(cls, result: Mapping[str, Any]) -> Run:
        """The run that a line of results is of."""
        names = {entry.name for entry in dataclasses.fields(cls)}
        values = {name: value for name, value in result.items() if name in names}
        if "row_lr_ratio" in result:  # lines from before there were other options
            values["trainer"] = {"row_lr_ratio": result["row_lr_ratio"]}
        return cls(**{name: tuple(value) if isinstance(value, list) else value for name, value in values.items()})

    @property
    def rates(self) -> dict[str, float]:
        """Learning rates of an adapter's parameters by kind; early lines of results name that of rows alone."""
        rows = {"rows": self.trainer["row_lr_ratio"]} if "row_lr_ratio" in self.trainer else {}
        return {**rows, **self.trainer.get("rates", {})}

    @property
    def form(self) -> str:
        """What LANDeRMT's deltas are: `rows`, `factors` or `both`."""
        tuned = {"pair": ("general", "specific"), "specific": ("specific",)}.get(
            self.options.get("tune", "pair"), ("general",)
        )
        in_rows = [self.options[f"{group}_rank"] is None for group in tuned]
        if self.options["attention_modules"]:
            in_rows.append(False)
        return "rows" if all(in_rows) else "both" if any(in_rows) else "factors"

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
        if not self.pruning:
            values.pop("pruning")
        if self.method in UNTRAINED:
            values = {"method": self.method}
        return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:12]


def _rest_of_form(options: Mapping[str, Any]) -> dict[str, Any]:
    """What options leave to the defaults of `LanderConfig`, of those that say where and in what form it tunes."""
    config = LanderConfig()
    form = {name: getattr(config, name) for name in FFNS_ALONE}
    form["attention_modules"] = None if options.get("tune") == "specific" else list(get_args(Role))
    if options.get("attention_modules", form["attention_modules"]):
        form |= {name: getattr(config, name) for name in ("attention_layers", "attention_rank")}
    return {name: value for name, value in form.items() if name not in options}


@dataclass(frozen=True)
class Test:
    """A test set and the lines of it that are scored, counted from 1; a direction that it lacks is left out."""

    name: str
    first: int
    last: int

    def __str__(self) -> str:
        return f"{self.name} {self.first} to {self.last}"
