"""Experiments: each is a list of named runs. Most are the paper's; those of `programme.py` are plain data."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from itertools import zip_longest
from typing import Any, get_args

from controls import CONTROLS
from programme import PROGRAMME
from runs import FFNS_ALONE, PAPER, Run, Test

from peft_landermt.detection.layers import ActivationStatistic

OTHERS = ("de", "it", "fr", "ar", "zh")
DIRECTIONS = tuple(pair for other in OTHERS for pair in (f"en-{other}", f"{other}-en"))
NEWS = ("newstest2016", "newstest2014")
"""Test sets of WMT: German, and French."""


@dataclass(frozen=True)
class Scale:
    """How large everything is.

    Attributes:
        rows: Sentence pairs of each direction.
        search_rows: Sentence pairs of each direction for choosing a learning rate; 0: the middle one is taken.
        num_layers: k, the relevant layers of a direction.
        seeds: One run for each.
        pairs: Directions.
        flores: FLORES-200 devtest lines that are scored; None: none, the development loss is all that counts.
        news: Lines of newstest2014 and newstest2016 that are scored; None: neither.
        activation_statistic: What LANDeRMT chooses layers by; runs name it where it is not the paper's `"mean"`.
    """

    rows: int = 400
    search_rows: int = 60
    num_layers: int = 4
    seeds: tuple[int, ...] = (0,)
    pairs: tuple[str, ...] = DIRECTIONS
    flores: tuple[int, int] | None = (201, 260)
    news: tuple[int, int] | None = None
    activation_statistic: str = "mean"

    @property
    def tests(self) -> list[Test]:
        names = {"flores": self.flores, **dict.fromkeys(NEWS, self.news)}
        return [Test(name, *lines) for name, lines in names.items() if lines is not None]


@dataclass(frozen=True)
class Named:
    """A run under the name that a table gives it."""

    label: str
    run: Run


LEARNING_RATES = {
    "full": (1e-5, 2e-5, 5e-5),
    "adapter": (2e-4, 5e-4, 1e-3),
    "lora": (2e-4, 5e-4, 1e-3),
    "lora-ffn": (5e-4, 1e-3, 2e-3),
    "lora-attention": (5e-4, 1e-3, 2e-3),
    "adapter-lora": (1e-4, 2e-4, 5e-4),
    "lander": (2e-4, 5e-4, 1e-3),
    "lander, FFNs alone": (5e-4, 1e-3, 2e-3),
    "lander-lora": (5e-4, 1e-3, 2e-3),
    "lander, rows": (3e-5, 1e-4, 3e-4),
}
"""Three for each method; adapters of whole rows, without factors, have their own."""

ROWS_AT = (0.1, 0.03, 0.01)
LITERAL = {"activation_statistic": "mean", "normalize_awareness": False}


def baseline(method: str, scale: Scale, **changes: Any) -> Run:
    run = Run(method, scale.pairs, scale.rows, search_rows=scale.search_rows, **changes)
    rates = LEARNING_RATES.get(_kind(run), ())
    return replace(run, learning_rates=rates if scale.search_rows else rates[1:2])


def _kind(run: Run) -> str:
    """The name of a run's learning rates."""
    if run.method != "lander":
        return run.method
    if run.form == "rows":
        return "lander, rows"
    return "lander" if run.options["attention_modules"] else "lander, FFNs alone"


def lora_on_ffns(scale: Scale) -> Run:
    """LoRA on the FFNs that are relevant to some direction."""
    return baseline("lora-ffn", scale, detection=_detection(scale))


def lander(scale: Scale, detection: dict[str, Any] | None = None, **options: Any) -> Run:
    """LANDeRMT with the library's defaults, but for what is named."""
    return baseline("lander", scale, detection={**_detection(scale), **(detection or {})}, options=options)


def _detection(scale: Scale) -> dict[str, Any]:
    statistic = scale.activation_statistic
    return {"num_layers": scale.num_layers, **({} if statistic == "mean" else {"activation_statistic": statistic})}


def table1(scale: Scale) -> list[Named]:
    """Methods on all directions."""
    return [
        Named("0-shot", baseline("zero-shot", scale)),
        Named("5-shot", baseline("few-shot", scale)),
        Named("Full finetuning", baseline("full", scale)),
        Named("Adapter", baseline("adapter", scale)),
        Named("LoRA", baseline("lora", scale)),
        Named("Adapter-LoRA", baseline("adapter-lora", scale)),
        Named("LANDeRMT", lander(scale)),
        Named("LANDeRMT, paper", lander(scale, LITERAL, **PAPER)),
    ]


def table2(scale: Scale) -> list[Named]:
    """What is tuned, and whether detection matters."""
    return [
        Named("Layers", lander(scale, tune="layers")),
        Named("LS", lander(scale, tune="specific")),
        Named("LG", lander(scale, tune="general")),
        Named("LANDeRMT", lander(scale)),
        *(Named(control, replace(lander(scale), control=control)) for control in CONTROLS if control),
    ]


def choices(scale: Scale) -> list[Named]:
    """Every option, one changed at a time."""
    return [
        Named("defaults", lander(scale)),
        *(Named(f"car={car}", lander(scale, car=car)) for car in ("paper", "proportional", "token", "learned")),
        Named("inactive_neurons=drop", lander(scale, inactive_neurons="drop")),
        Named("normalize_awareness=False", lander(scale, {"normalize_awareness": False})),
        *(
            Named(f"activation_statistic={statistic}", lander(replace(scale, activation_statistic=statistic)))
            for statistic in get_args(ActivationStatistic)
            if statistic != scale.activation_statistic
        ),
        *(Named(f"general_rank={rank}", lander(scale, general_rank=rank)) for rank in (None, 4, 64)),
        Named("LoRA on the same FFNs", lora_on_ffns(scale)),
    ]


def rates(scale: Scale) -> list[Named]:
    """Every method at each of its learning rates, also with attention alone or beside; LANDeRMT's rows at parts of it,
    or not tuned."""
    on_ffns = lander(scale, **FFNS_ALONE)
    runs = {
        "Full finetuning": baseline("full", scale),
        "Adapter": baseline("adapter", scale),
        "LoRA": baseline("lora", scale),
        "LoRA on the same FFNs": lora_on_ffns(scale),
        "LoRA on attention": baseline("lora-attention", scale),
        "Adapter-LoRA": baseline("adapter-lora", scale),
        "LANDeRMT": lander(scale),
        "LANDeRMT with LoRA on attention": replace(on_ffns, method="lander-lora"),
        **{f"FFNs, rows at {ratio:g}": replace(on_ffns, trainer={"row_lr_ratio": ratio}) for ratio in ROWS_AT},
        "FFNs, general neurons": lander(scale, **FFNS_ALONE, tune="general"),
    }
    return [
        Named(f"{label}, lr={rate:g}", replace(run, learning_rates=(rate,)))
        for label, run in runs.items()
        for rate in LEARNING_RATES[_kind(run)]
    ]


def layers(scale: Scale) -> list[Named]:
    """Figure 10: k, the number of relevant layers of a pair."""
    return [Named(f"k={count}", lander(replace(scale, num_layers=count))) for count in (1, 2, 4, 7, 10, 14, 18)]


def ratio(scale: Scale) -> list[Named]:
    """Figure 11: epsilon, the share of language-general neurons."""
    return [Named(f"epsilon={share}", lander(scale, {"general_ratio": share})) for share in (0.5, 0.7, 0.8, 0.9, 0.95)]


def data(scale: Scale) -> list[Named]:
    """The order of methods by the amount of data."""
    sizes = [replace(scale, rows=rows) for rows in (250, 1000, 4000)]
    return [
        Named(f"{label}, {size.rows} rows", run)
        for size in sizes
        for label, run in (("LoRA", baseline("lora", size)), ("LANDeRMT", lander(size)))
    ]


def alone(scale: Scale) -> list[Named]:
    """Figure 3 and interference: directions tuned alone and jointly, all of them scored, beside the base."""
    return [
        Named("0-shot", baseline("zero-shot", scale)),
        *(
            Named(f"{label}, {pairs}", run)
            for pairs, size in [("joint", scale), *((pair, replace(scale, pairs=(pair,))) for pair in scale.pairs)]
            for label, run in (("LoRA", baseline("lora", size)), ("LANDeRMT", lander(size)))
        ),
    ]


def by_rate(arms: Mapping[str, Mapping[str, Any]], scale: Scale) -> list[Named]:
    """Runs given as plain data, the fields of `Run`, each at every one of its learning rates; all at their first rate
    before any at its second."""
    found = []
    for label, fields in arms.items():
        run = Run(**{"pairs": scale.pairs, "rows": scale.rows, **fields, "search_rows": 0})  # type: ignore[arg-type]
        rates = run.learning_rates
        found.append([Named(f"{label}, lr={rate:g}", replace(run, learning_rates=(rate,))) for rate in rates])
    return [named for turn in zip_longest(*found) for named in turn if named is not None]


Experiment = Callable[[Scale], list[Named]]
EXPERIMENTS: dict[str, Experiment] = {
    "table1": table1,
    "table2": table2,
    "rates": rates,
    "choices": choices,
    "layers": layers,
    "ratio": ratio,
    "data": data,
    "alone": alone,
    **{name: partial(by_rate, arms) for name, arms in PROGRAMME.items()},
}


def plan(experiments: Mapping[str, Experiment], scale: Scale) -> dict[str, dict[str, list[Run]]]:
    """For every experiment and label, one run for each seed."""
    return {
        name: {named.label: [replace(named.run, seed=seed) for seed in scale.seeds] for named in make(scale)}
        for name, make in experiments.items()
    }
