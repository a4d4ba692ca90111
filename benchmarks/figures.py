"""The paper's figures from results, drawn with matplotlib; and what they show, for the tables too."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from statistics import fmean
from typing import Any


def _pyplot() -> Any:
    """Matplotlib without a window, and with SVG files that are the same each time."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    pyplot.rcParams["svg.hashsalt"] = "peft_landermt"
    return pyplot


def draw(results: dict[str, Any], folder: Path, experiments: Path) -> None:
    """All figures for which there are results, as PNG and SVG."""
    pyplot = _pyplot()
    folder.mkdir(parents=True, exist_ok=True)

    def save(figure: Any, name: str) -> None:
        figure.savefig(folder / f"{name}.svg", metadata={"Date": None})
        figure.savefig(folder / f"{name}.png", dpi=120)
        pyplot.close(figure)

    path = experiments.with_name("paper_analysis.json")
    if path.exists():
        _draw_detection(json.loads(path.read_text(encoding="utf-8")), pyplot, save)
    for experiment, name, label in (("layers", "figure_10", "k"), ("ratio", "figure_11", "epsilon")):
        if len(results.get(experiment, ())) > 1:
            _draw_sweep(results[experiment], pyplot, save, name, label)
    if "alone" in results:
        _draw_transfer(results["alone"], pyplot, save)


def draw_sizes(kinds: Mapping[str, list[tuple[float, float]]], top: float, path: Path) -> None:
    """Development loss by trained parameters, for every kind of runs; those above `top` are counted, not drawn."""
    pyplot = _pyplot()
    figure, axes = pyplot.subplots(figsize=(7.2, 4.2), layout="constrained")
    for (kind, found), (marker, colour, size) in zip(kinds.items(), _MARKERS, strict=True):
        shown = [(trained / 1e6, loss) for trained, loss in found if loss <= top]
        axes.scatter(*zip(*shown, strict=True), marker=marker, c=colour, s=size, label=kind, alpha=0.85)
    above = [loss for found in kinds.values() for _, loss in found if loss > top]
    if above:
        axes.set_title(
            f"not shown: {len(above)} at {min(above):.2f} to {max(above):.2f}", loc="right", fontsize="small"
        )
    axes.set(xscale="log", xlabel="trained parameters, millions", ylabel="development loss")
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.grid(alpha=0.25)
    axes.legend(fontsize="small", loc="upper right")
    figure.savefig(path, metadata={"Date": None})
    pyplot.close(figure)


_MARKERS = (
    ("o", "#1f77b4", 36),
    ("*", "#d62728", 160),
    ("D", "#e377c2", 36),
    ("s", "#ff9f40", 36),
    ("^", "#7f7f7f", 36),
)


def _draw_detection(measured: dict[str, Any], pyplot: Any, save: Any) -> None:
    series = {
        "figure_4": ("mean activation by language", measured["activation"]),
        "figure_5": ("change of activation to the next layer, $D_i$", measured["change"]),
        "figure_6": ("share of awareness, general neurons", _group(measured, "general")),
        "figure_7": ("share of awareness, the pair's specific neurons", _group(measured, "specific")),
        "figure_8": ("awareness, all neurons", _group(measured, "all")),
    }
    for name, (title, lines) in series.items():
        figure, axes = pyplot.subplots(figsize=(6.4, 3.6), layout="constrained")
        alike: dict[tuple[float, ...], list[str]] = {}  # a direction and its reverse share languages, so awareness
        for label, values in lines.items():
            alike.setdefault(tuple(values), []).append(label)
        for values, labels in alike.items():
            axes.plot(range(len(values)), values, marker=".", label=", ".join(labels))
        axes.set(xlabel="layer", title=title, xticks=range(0, max(map(len, lines.values())), 2))
        axes.legend(ncols=2, fontsize="small")
        save(figure, name)
    _draw_knock_out(measured["knock_out"], pyplot, save)
    found = measured["clusters"]
    for group, name in (("general", "figure_12"), ("specific", "figure_13")):
        figure, axes = pyplot.subplots(figsize=(5, 4.4), layout="constrained")
        for language in dict.fromkeys(found["languages"]):
            points = [
                point for point, of in zip(found[group]["points"], found["languages"], strict=True) if of == language
            ]
            axes.scatter(*zip(*points, strict=True), s=12, label=language)
        axes.set(xticks=[], yticks=[], title=f"{group} neurons, silhouette {found[group]['silhouette']:.2f}")
        axes.legend()
        save(figure, name)


def _draw_knock_out(changes: dict[str, dict[str, dict[str, float]]], pyplot: Any, save: Any) -> None:
    figure, grid = pyplot.subplots(1, 2, figsize=(8.4, 4), layout="constrained")
    bound = max(abs(value) for group in changes.values() for row in group.values() for value in row.values())
    for axes, (group, rows) in zip(grid, changes.items(), strict=True):
        image = _draw_matrix(axes, rows, bound, "RdBu_r")
        axes.set(xlabel="loss on", ylabel="silenced", title=f"{group} neurons")
    figure.colorbar(image, label="change of loss")
    save(figure, "knock_out")


def _draw_matrix(axes: Any, rows: Mapping[str, Mapping[str, float]], bound: float, colours: str) -> Any:
    """Values in cells whose colours reach from -bound to bound."""
    columns = list(next(iter(rows.values())))
    image = axes.imshow([list(row.values()) for row in rows.values()], cmap=colours, vmin=-bound, vmax=bound)
    axes.set_xticks(range(len(columns)), columns, rotation=60)
    axes.set_yticks(range(len(rows)), rows)
    for y, row in enumerate(rows.values()):
        for x, value in enumerate(row.values()):
            colour = "white" if abs(value) > 0.6 * bound else "black"
            axes.text(x, y, f"{value:+.2f}", ha="center", va="center", fontsize="small", color=colour)
    return image


def _group(measured: dict[str, Any], group: str) -> dict[str, list[float]]:
    return {pair: sums[group] for pair, sums in measured["awareness"].items()}


def outcome(run: dict[str, Any]) -> tuple[str, dict[str, float]]:
    """What came of a run, by direction: BLEU on the first test set; the development loss where nothing was scored."""
    for scores in run["scores"].values():
        return "BLEU", {pair: row["bleu"] for pair, row in scores.items()}
    return "development loss", run["development_losses"]


def transfer(results: dict[str, Any], method: str) -> dict[str, dict[str, float]]:
    """What every direction gains or loses beside the base, for every run of a method in the experiment `alone`."""
    base = outcome(results["0-shot"][0])[1]
    tuned = {
        label.removeprefix(f"{method}, "): outcome(runs[0])[1]
        for label, runs in results.items()
        if label.startswith(f"{method}, ")
    }
    return {label: {pair: found[pair] - base[pair] for pair in base} for label, found in tuned.items()}


def _draw_sweep(results: dict[str, Any], pyplot: Any, save: Any, name: str, label: str) -> None:
    """The mean outcome against one option."""
    points = []
    for key, runs in results.items():
        measure, outcomes = zip(*map(outcome, runs), strict=True)
        points.append((float(key.partition("=")[2]), fmean(fmean(found.values()) for found in outcomes)))
    figure, axes = pyplot.subplots(figsize=(4.8, 3.4), layout="constrained")
    axes.plot(*zip(*points, strict=True), marker="o")
    axes.set(xlabel=label, ylabel=f"mean {measure[0]}")
    save(figure, name)


def _draw_transfer(results: dict[str, Any], pyplot: Any, save: Any) -> None:
    """Figure 3: what every direction (columns) gains or loses when one is tuned (rows), beside the base."""
    if "0-shot" not in results:
        return
    measure = outcome(results["0-shot"][0])[0]
    for method in ("LANDeRMT", "LoRA"):
        changes = transfer(results, method)
        if changes.keys() <= {"joint"}:
            continue
        bound = max(abs(change) for row in changes.values() for change in row.values())
        figure, axes = pyplot.subplots(figsize=(6.4, 5.6), layout="constrained")
        image = _draw_matrix(axes, changes, bound, "RdBu" if measure == "BLEU" else "RdBu_r")  # blue is better
        axes.set_title(method)
        figure.colorbar(image, label=f"change of {measure}")
        save(figure, f"figure_3_{method.lower()}")
