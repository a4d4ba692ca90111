"""Costs beside their targets, as Markdown tables.

python benchmarks/speed_report.py
python benchmarks/speed_report.py --plot growth.svg    # needs matplotlib
"""

from __future__ import annotations

import argparse
import statistics
from pathlib import Path
from typing import Any, Literal, NamedTuple

from common import RESULTS, read_results, table

Measures = dict[str, dict[str, list[float]]]


class Target(NamedTuple):
    """A goal for one measurement of speed.py, as a ratio to another one of the same run, or absolute."""

    what: str
    measure: str
    measured: str
    reference: str | None
    kind: Literal["at most", "at least", "equal"]
    limit: float


STEP, MIXED, FORWARD = "training step_seconds", "mixed forward_seconds", "inference forward_seconds"
GROWN, ALL = "grown forward_seconds", "old, new and composed pairs"
SWITCH, LOAD = "adapters set_adapter_seconds", "adapters load_seconds"
MEMORY, DETECT = "memory peak_bytes", "detection detection_seconds"
FORMS = {"lander": "defaults", "paper": "the paper's form", "lslo": "LSLo"}
STEPS_BESIDE_LORA = {"lander": 0.9, "paper": 1.0, "lslo": 1.1}
FOR_EACH_FORM = (
    Target("peak memory beside LoRA, 1 pair", MEMORY, "{}-1", "lora", "at most", 1.0),
    Target("peak memory beside LoRA, 10 pairs", MEMORY, "{}-10", "lora", "at most", 1.0),
    Target("training step beside full finetuning, 1 pair", STEP, "{}-1", "full", "at most", 0.6),
    Target("training step beside full finetuning, 10 pairs", STEP, "{}-10", "full", "at most", 0.6),
    Target("training step, 10 pairs beside 1", STEP, "{}-10", "{}-1", "at most", 1.05),
    Target("forward beside LoRA, both active", FORWARD, "{}-1 active", "lora active", "at most", 1.0),
    Target("forward beside base, merged", FORWARD, "{}-1 merged", "base", "equal", 1.0),
    Target("forward of mixed rows, 10 pairs beside 1", MIXED, "{}-10, 10 pairs", "{}-10, 1 pairs", "at most", 1.1),
    Target("set_adapter among ten, seconds", SWITCH, "{}-10", None, "at most", 0.002),
    Target("set_adapter among ten beside LoRA", SWITCH, "{}-10", "lora", "at most", 1.0),
    Target("speed of loading beside load_file", LOAD, "{}-10, load_file", "{}-10, load_adapter", "at least", 0.7),
)
"""Targets for each of `FORMS`; `{}` is its name."""

FOR_ONE_FORM = (
    *(
        Target(f"training step beside LoRA, {pairs}: {FORMS[form]}", STEP, f"{form}-{count}", "lora", "at most", limit)
        for form, limit in STEPS_BESIDE_LORA.items()
        for count, pairs in ((1, "1 pair"), (10, "10 pairs"))
    ),
    *(
        Target(f"{name}: forward of {ALL} beside {one}", GROWN, f"{name}, {ALL}", f"{name}, {one}", "at most", 1.1)
        for name in ("grown", "grown from general")
        for one in ("one old pair", "one new pair")
    ),
    *(
        Target(
            f"detection beside one pass over the same tokens, {weights}",
            DETECT,
            "detect_neurons",
            f"sentences and prompts, {weights}",
            "at most",
            1.25,
        )
        for weights in ("weights frozen", "weight gradients")
    ),
)


def targets() -> list[Target]:
    formed = [
        target._replace(
            what=f"{target.what}: {name}",
            measured=target.measured.format(form),
            reference=target.reference.format(form) if target.reference is not None else None,
        )
        for target in FOR_EACH_FORM
        for form, name in FORMS.items()
    ]
    return [*FOR_ONE_FORM, *formed]


def quartiles(values: list[float]) -> tuple[float, float, float]:
    """Lower quartile, median and upper quartile."""
    if len(values) < 2:
        return values[0], values[0], values[0]
    lower, middle, upper = statistics.quantiles(values, n=4, method="inclusive")
    return lower, middle, upper


def check(target: Target, measures: Measures) -> list[str] | None:
    """What was measured for a target, and whether it holds; None where it was not measured.

    Ratios are taken within each repetition, so that what slows the machine for a while cancels out.
    """
    found = measures.get(target.measure, {})
    if target.measured not in found or (target.reference is not None and target.reference not in found):
        return None
    values = found[target.measured]
    if target.reference is not None:
        values = [mine / other for mine, other in zip(values, found[target.reference], strict=True)]
    lower, middle, upper = quartiles(values)
    holds = {"at most": middle <= target.limit, "at least": middle >= target.limit, "equal": lower <= target.limit}
    digits = 2 if target.reference is not None else 5
    numbers = [f"{value:.{digits}f}" for value in (middle, min(values), lower, upper)]
    wanted = f"{target.limit:g} within quartiles" if target.kind == "equal" else f"{target.kind} {target.limit:g}"
    return [target.what, wanted, numbers[0], "yes" if holds[target.kind] else "no", *numbers[1:]]


def by_setting(results: list[dict[str, Any]]) -> dict[tuple[str, ...], tuple[Measures, int]]:
    """What was measured for every model, dtype and device, and the tokens of a batch; of several runs of one section
    the last counts."""
    runs: dict[tuple[str, ...], tuple[Measures, int]] = {}
    for result in results:
        if result["section"] != "growth":
            settings = result["settings"]
            key = tuple(settings[name] for name in ("model", "dtype", "device"))
            measures = runs.setdefault(key, ({}, settings["batch_size"] * settings["length"]))[0]
            measures |= {f"{result['section']} {name}": values for name, values in result["measures"].items()}
    return runs


def target_table(measures: Measures) -> str:
    """What holds of the targets that were measured."""
    checked = [row for target in targets() if (row := check(target, measures)) is not None]
    header = ["what", "target", "measured", "holds", "min", "lower quartile", "upper quartile"]
    return table(header, checked) if checked else ""


def speed_tables(results: list[dict[str, Any]]) -> str:
    """Targets and all measurements of speed.py."""
    parts = []
    for key, (measures, tokens) in by_setting(results).items():
        parts += [f"### {', '.join(key)}", *filter(None, [target_table(measures)])]
        parts += [measure_table(measure, found, tokens) for measure, found in measures.items()]
    growth = [result for result in results if result["section"] == "growth"]
    return "\n\n".join(parts + ([growth_table(growth)] if growth else []))


def measure_table(measure: str, found: dict[str, list[float]], tokens: int) -> str:
    """One measure of all contenders: seconds as milliseconds, bytes as megabytes."""
    unit, factor = next(
        (unit, factor)
        for ending, unit, factor in (("seconds", "ms", 1e3), ("bytes", "MB", 1e-6), ("", "", 1.0))
        if measure.endswith(ending)
    )
    title = measure.removesuffix("seconds").removesuffix("bytes").replace("_", " ").strip()
    single = all(len(values) == 1 for values in found.values())
    header = [unit or "number"] if single else [f"median {unit}", "min", "lower quartile", "upper quartile"]
    per_second = measure.endswith("step_seconds")
    rows: list[list[Any]] = []
    for name, values in found.items():
        lower, middle, upper = quartiles(values)
        numbers = [middle] if single else [middle, min(values), lower, upper]
        written = [f"{value * factor:.4g}" if unit else f"{value:,}" for value in numbers]
        rows.append([name, *written, *([f"{tokens / middle:.0f}"] if per_second else [])])
    return table([title, *header, *(["tokens/s"] if per_second else [])], rows)


def growth_table(results: list[dict[str, Any]]) -> str:
    """Medians along every axis."""
    rows = [
        [result["settings"]["model"], result["axis"], result["value"], name]
        + [
            f"{statistics.median(values[name]) * 1e3:.4g}" if name in (values := result["measures"][measure]) else ""
            for measure in ("step_seconds", "forward_seconds", "detection_seconds")
        ]
        for result in results
        for name in [*result["measures"]["step_seconds"], "detect_neurons"]
    ]
    return table(["model", "axis", "value", "contender", "step ms", "forward ms", "detection ms"], rows)


def plot_growth(results: list[dict[str, Any]], output: Path) -> None:
    """Training step and forward pass along every axis, drawn with matplotlib."""
    try:
        from matplotlib import pyplot
    except ImportError as error:
        raise SystemExit("--plot needs matplotlib: pip install matplotlib") from error
    axes = list(dict.fromkeys(result["axis"] for result in results))
    measures = ("step_seconds", "forward_seconds")
    colors = {name: f"C{number}" for number, name in enumerate(results[0]["measures"][measures[0]])}
    figure, grid = pyplot.subplots(2, len(axes), figsize=(3.2 * len(axes), 6), squeeze=False, layout="constrained")
    for column, axis in enumerate(axes):
        chosen = sorted((result for result in results if result["axis"] == axis), key=lambda result: result["value"])
        values = [result["value"] for result in chosen]
        for row, measure in enumerate(measures):
            for name in chosen[0]["measures"][measure]:
                heights = [statistics.median(result["measures"][measure][name]) * 1e3 for result in chosen]
                grid[row][column].plot(values, heights, marker="o", color=colors[name], label=name)
            title = f"{measure.removesuffix('_seconds')} ms"
            grid[row][column].set(xlabel=axis, ylabel=title, ylim=(0, None), xticks=values)
    grid[0][0].legend()
    figure.savefig(output)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, default=RESULTS / "speed.jsonl", help="what speed.py has written")
    parser.add_argument("--plot", type=Path, help="draw how costs grow into this file, instead of printing tables")
    args = parser.parse_args()
    results = read_results(args.results)
    if args.plot is not None:
        plot_growth([result for result in results if result["section"] == "growth"], args.plot)
    else:
        print(speed_tables(results))


if __name__ == "__main__":
    main()
