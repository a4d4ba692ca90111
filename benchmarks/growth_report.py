"""What growth.py found, as Markdown tables: losses of old and new pairs, and BLEU of pairs that nobody trained.

python benchmarks/growth_report.py
python benchmarks/growth_report.py --results growth.jsonl
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from itertools import groupby
from pathlib import Path
from statistics import fmean
from typing import Any

from common import RESULTS, read_results, table
from lines import spread

RUN = ("model", "dtype", "order", "rows", "epochs", "seed", "bleu", "arm", "rate")
SETTING = RUN[:5]


def runs_of(lines: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Runs that came to their end: what they are, their `phases`, and what was measured at the end."""
    runs: dict[tuple[Any, ...], dict[str, Any]] = {}
    for line in lines:
        run = runs.setdefault(tuple(line[name] for name in RUN), {"phases": {}})
        if line.get("end"):
            run.update(line)
        else:
            run["phases"][line["phase"]] = line
    return [run for run in runs.values() if run.get("end")]


def losses(run: dict[str, Any]) -> list[Any]:
    """A row: mean losses of all pairs at the end; of the first pairs when they were new and at the end; and so on."""
    phases = [run["phases"][number] for number in sorted(run["phases"])]
    cells: list[Any] = []
    for phase in phases:
        for measured in [phase] if phase is phases[-1] else [phase, phases[-1]]:
            cells.append(f"{_mean_of(measured, phase['pairs']):.4f}")
    later = phases[1]["trainable_parameters"] / 1e6 if len(phases) > 1 else ""
    return [
        run["arm"],
        f"{run['rate']:g}",
        run["seed"],
        later,
        f"{_mean_of(phases[-1], phases[-1]['losses']):.4f}",
        *cells,
        f"{fmean(run['losses_composed'].values()):.4f}",
    ]


def loss_table(runs: list[dict[str, Any]]) -> str:
    """Mean development losses; runs of one setting, joint ones aside, which have a single phase."""
    languages = runs[0]["order"].split()
    header = ["arm", "rate", "seed", "trained a phase, M", "all, end", "de fr, new", "de fr, end"]
    header += [f"{languages[0]}, new", f"{languages[0]}, end", f"{languages[1]}, new", "composed"]
    return table(header, [losses(run) for run in runs if len(run["phases"]) == 3])


def mean_table(runs: list[dict[str, Any]]) -> str:
    """Mean development losses over the runs of an arm, which differ in order and seed: of all pairs at the end, of the
    first pairs, of those that came second, and of each language when it was new, added first or after the other, with
    the standard deviation over seeds."""
    arms: dict[tuple[str, float], list[dict[str, Any]]] = {}
    for run in runs:
        if len(run["phases"]) == 3:
            arms.setdefault((run["arm"], run["rate"]), []).append(run)
    rows = []
    for (arm, rate), found in arms.items():
        phases = [[run["phases"][number] for number in range(3)] for run in found]
        new = {
            (language, place): [
                _mean_of(three[place], three[place]["pairs"])
                for three in phases
                if three[place]["pairs"][0].endswith(language)
            ]
            for language in ("zh", "ar")
            for place in (1, 2)
        }
        measured = [
            [_mean_of(last, last["losses"]) for *_, last in phases],
            [_mean_of(first, first["pairs"]) for first, *_ in phases],
            [_mean_of(last, first["pairs"]) for first, _, last in phases],
            [_mean_of(second, second["pairs"]) for _, second, _ in phases],
            [_mean_of(last, second["pairs"]) for _, second, last in phases],
            [fmean(run["losses_composed"].values()) for run in found],
        ]
        trained = max(three[1]["trainable_parameters"] for three in phases) / 1e6
        cells = [*(f"{fmean(values):.4f}" for values in measured), *(spread(values, 4) for values in new.values())]
        rows.append([arm, f"{rate:g}", str(len(found)), trained, *cells])
    header = ["arm", "rate", "runs", "trained a phase, M", "all, end", "first pairs, new", "at the end"]
    header += ["second pairs, new", "at the end", "composed", "zh, first", "zh, after ar", "ar, first", "ar, after zh"]
    return table(header, rows)


def _mean_of(phase: dict[str, Any], pairs: Iterable[str]) -> float:
    return fmean(phase["losses"][pair] for pair in pairs)


def bleu_table(runs: list[dict[str, Any]]) -> str:
    """BLEU of composed pairs, directly and by way of English, and the mean over the others."""
    pairs = list(next(run["bleu_pivoted"] for run in runs if "bleu_pivoted" in run))
    header = ["arm", "rate", "trained pairs", *pairs, *(f"{pair}, through English" for pair in pairs)]
    rows = []
    for run in (run for run in runs if "bleu_pivoted" in run):
        trained = fmean(score for pair, score in run["bleu_direct"].items() if pair not in pairs)
        direct = [run["bleu_direct"][pair] for pair in pairs]
        rows.append([run["arm"], f"{run['rate']:g}", trained, *direct, *(run["bleu_pivoted"][pair] for pair in pairs)])
    return table(header, rows)


def report(lines: list[dict[str, Any]]) -> str:
    """All tables, a heading for each setting."""
    parts = []
    runs = sorted(runs_of(lines), key=lambda run: [str(run[name]) for name in SETTING])
    for setting, found in groupby(runs, key=lambda run: tuple(run[name] for name in SETTING)):
        model, dtype, order, rows, epochs = setting
        here = list(found)
        parts.append(f"{model}, {dtype}, then {order}, {rows} rows a direction, {epochs} epochs")
        if any(len(run["phases"]) == 3 for run in here):
            parts.append(loss_table(here))
        if any("bleu_pivoted" in run for run in here):
            parts.append(bleu_table(here))
    return "\n\n".join(parts)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, default=RESULTS / "growth.jsonl")
    print(report(read_results(parser.parse_args().results)))


if __name__ == "__main__":
    main()
