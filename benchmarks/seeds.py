"""Tables over seeds: methods side by side, and what detection chooses beside its controls."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import product
from statistics import fmean, stdev
from typing import Any

from common import table
from lines import Group, Line, groups, spread

STUDENT = {2: 12.706, 3: 4.303, 4: 3.182, 5: 2.776, 6: 2.571}
"""The 97.5% quantiles of Student's t, by the number of seeds."""

PLACED = "LANDeRMT, k={}, attention {}, output projections, specific r=4, B at 2"
FOUR, ALL = PLACED.format(4, "v o"), PLACED.format(18, "v o")
CHOICES = {
    "layers: the four of eq. 2": (
        FOUR,
        {"four random ones": f"{FOUR}, random layers", "the last four": f"{FOUR}, last layers"},
    ),
    "layers: the four with the largest gradients": (
        f"{FOUR}, largest gradients",
        {"four random ones": f"{FOUR}, random layers"},
    ),
    "neurons: those of eq. 5": (
        ALL,
        {
            "random ones": f"{ALL}, random neurons",
            "the general ones alone": ALL.replace("specific r=4", "specific r=4, tune=general"),
            "all, as one block": ALL.replace("specific r=4", "specific r=4, tune=layers"),
        },
    ),
    "modules: v and o": (FOUR, {"q and k": PLACED.format(4, "q k")}),
}
"""What is chosen, by its name in the log, and what stands for it in its controls."""


def over_seeds(lines: Iterable[Line]) -> str:
    """One row for each method at a rate, with its mean development loss over seeds by the number of rows."""
    found: dict[tuple[str, float], dict[int, Group]] = {}
    for group in groups(lines):
        size = next(iter(group.by_seed.values()))["rows"]
        found.setdefault((group.label, group.rate or 0.0), {})[size] = group
    columns = sorted({size for sizes in found.values() for size in sizes})
    ordered = sorted(found.items(), key=lambda entry: fmean(entry[1][max(entry[1])].losses))
    cells = [
        [
            name,
            f"{rate:g}",
            *(spread(sizes[size].losses, 4) if size in sizes else "" for size in columns),
            f"{(sizes[min(sizes)].trained or 0) / 1e6:.2f} M",
        ]
        for (name, rate), sizes in ordered
    ]
    return table(["", "rate", *(f"{size} rows" for size in columns), "trained"], cells)


def scores_over_seeds(lines: Iterable[Line]) -> str:
    """One row for each method at a rate and each of its test sets: means over directions, and of these over seeds."""
    cells = []
    for group in groups(lines):
        measured = [line for line in group.by_seed.values() if line["scores"]]
        for test in measured[0]["scores"] if measured else ():
            found = [list(line["scores"][test].values()) for line in measured]
            means = [[fmean(row[metric] for row in rows) for rows in found] for metric in ("bleu", "chrf")]
            runaway = sum(row["runaway"] for rows in found for row in rows)
            cells.append([test, group.label, f"{group.rate:g}", *(spread(each, 2) for each in means), str(runaway)])
    cells.sort(key=lambda row: row[0])
    return table(["test lines", "", "rate", "BLEU", "chrF++", "translations without an end"], cells)


def choices(lines: Iterable[Line]) -> str:
    """How much lower the loss is with what detection chose than with a control, seed by seed, each at the better of
    its rates, with a 95% interval by Student's t."""
    found = groups(lines)
    rows: list[list[Any]] = []
    for name, (chosen, controls) in CHOICES.items():
        own = _best(found, chosen)
        for control, pattern in controls.items():
            rows.append([name, control, *_compared(own, _best(found, pattern))])
    return table(["chosen", "control", "loss", "loss of the control", "difference, 95% interval"], rows)


def defaults_beside_lora(lines: Iterable[Line], default: str) -> str:
    """How much lower the loss of the defaults, at each rate for v and o, is than that of LoRA in each place, by rows
    and directions."""
    by_size: dict[tuple[int, int], list[Group]] = {}
    for group in groups(lines):
        line = next(iter(group.by_seed.values()))
        by_size.setdefault((line["rows"], len(line["pairs"])), []).append(group)
    rows = []
    for (size, directions), found in sorted(by_size.items()):
        ours, theirs = (
            sorted({group.label for group in found if group.label.startswith(of)}) for of in (default, "LoRA")
        )
        for own, other in product(ours, theirs):
            better, lora = _best(found, own), _best(found, other)
            seeds = _seeds_of_both(better, lora)
            if len(seeds) > 1:  # with a single one there is no interval
                form = own.removeprefix(default).removeprefix(", ") or "the defaults"
                rows.append([f"{directions} × {size}", form, other, len(seeds), *_compared(better, lora)])
    header = ["directions × rows", "", "beside", "seeds", "loss", "loss of LoRA", "difference, 95% interval"]
    return table(header, rows)


def _compared(own: Group, other: Group) -> list[str]:
    """Mean losses of two groups over the seeds of both, and their difference, seed by seed, with its interval."""
    losses = [[group.loss_by_seed[seed] for seed in _seeds_of_both(own, other)] for group in (own, other)]
    gains = [mine - theirs for mine, theirs in zip(*losses, strict=True)]
    half, mean = STUDENT[len(gains)] * stdev(gains) / len(gains) ** 0.5, fmean(gains)
    shown = f"{mean:+.4f} ({mean - half:+.4f} to {mean + half:+.4f})"
    return [*(f"{fmean(each):.4f}" for each in losses), shown]


def _seeds_of_both(own: Group, other: Group) -> list[int]:
    return sorted(own.loss_by_seed.keys() & other.loss_by_seed.keys())


def _best(found: list[Group], name: str) -> Group:
    """The rate with the lowest mean over seeds."""
    return min((group for group in found if group.label == name), key=lambda group: fmean(group.losses))
