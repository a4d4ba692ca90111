"""Figures of a report, as SVG that stands alone."""

from __future__ import annotations

import base64
import importlib.util
import io
import itertools
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from ..errors import ConfigError
from ..neuron_map import NeuronMap


def check_installed() -> None:
    """Raise ConfigError if matplotlib is not installed."""
    if importlib.util.find_spec("matplotlib") is None:
        raise ConfigError("report", "matplotlib", "is not installed; run pip install 'peft_landermt[report]'.")


def _figure(width: float = 7.2, height: float = 3.4) -> Any:
    """A figure of its own, apart from pyplot's state, which is the caller's."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def _image(figure: Any) -> str:
    """A figure as a data URI."""
    from matplotlib import rc_context

    buffer = io.BytesIO()
    with rc_context({"svg.hashsalt": "peft_landermt"}):
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    return f"data:image/svg+xml;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def _axes(count: int = 1) -> tuple[Any, list[Any]]:
    """A figure and its axes, two in a row, for curves over layers or steps."""
    rows = math.ceil(count / 2)
    figure = _figure(height=3.4 * rows)
    grid = [figure.add_subplot(rows, min(count, 2), place + 1) for place in range(count)]
    for axes in grid:
        axes.xaxis.get_major_locator().set_params(integer=True)
    return figure, grid


def _legend(figure: Any, axes: Any) -> None:
    handles, labels = axes.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=min(len(labels), 6), fontsize="small")


def layer_changes(neuron_map: NeuronMap) -> str:
    """Draw D_i of every layer for every pair (eq. 2), the relevant layers marked."""
    figure, (axes,) = _axes()
    for pair in neuron_map.language_pairs:
        changes = enumerate(neuron_map.layer_changes[pair])
        known = {layer: change for layer, change in changes if change is not None}
        (line,) = axes.plot(known.keys(), known.values(), linewidth=1, label=pair)
        chosen = [layer for layer in neuron_map.layers(pair) if layer in known]
        axes.plot(chosen, [known[layer] for layer in chosen], "o", color=line.get_color())
    axes.set(xlabel="layer", ylabel="change of activation $D_i$")
    _legend(figure, axes)
    return _image(figure)


def owners(neuron_map: NeuronMap) -> str:
    """Draw the owners of all neurons, layers by neurons."""
    return _image(neuron_map.plot().figure)


def neuron_counts(neuron_map: NeuronMap) -> str:
    """Draw the specific neurons of every layer, by language."""
    figure, (axes,) = _axes()
    layers = range(neuron_map.num_layers)
    bottom = [0] * neuron_map.num_layers
    for language in neuron_map.languages:
        counts = [len(neuron_map.specific(layer, language)) for layer in layers]
        axes.bar(layers, counts, bottom=bottom, label=language)
        bottom = [below + count for below, count in zip(bottom, counts, strict=True)]
    axes.set(xlabel="layer", ylabel="language-specific neurons")
    _legend(figure, axes)
    return _image(figure)


def awareness(neuron_map: NeuronMap) -> str:
    """Draw the sums of Phi over general and over the pair's specific neurons, layer by layer; they know no
    direction."""
    figure, both = _axes(2)
    directions: dict[frozenset[str], list[str]] = {}
    for pair in neuron_map.language_pairs:
        directions.setdefault(frozenset(pair.split("-")), []).append(pair)
    for pairs in directions.values():
        sums = [neuron_map.awareness_sums(layer, pairs[0]) for layer in range(neuron_map.num_layers)]
        for axes, group, values in zip(both, ("specific", "general"), zip(*sums, strict=True), strict=True):
            axes.plot(values, linewidth=1, marker=".", label=", ".join(pairs))
            axes.set(xlabel="layer", ylim=(0, None), ylabel=f"awareness Φ, {group} neurons")
    _legend(figure, both[0])
    return _image(figure)


def overlap_of_languages(neuron_map: NeuronMap) -> tuple[list[list[float]], float]:
    """Compute how far languages are aware in the same neurons, before each neuron is given to one owner.

    Returns:
        (L, L) Jaccard index of the neurons with the highest Phi of two languages, mean over layers, as many neurons
        as a layer has specific ones; and what two random choices of that many share.
    """
    sizes = [int((entry.owner >= 0).sum()) for entry in neuron_map.neurons]
    chosen = [
        [set(row.topk(size).indices.tolist()) for row in entry.awareness]
        for entry, size in zip(neuron_map.neurons, sizes, strict=True)
        if size
    ]
    count = len(neuron_map.languages)
    jaccard = torch.eye(count)
    for first, second in itertools.combinations(range(count), 2):
        shared = [len(tops[first] & tops[second]) / len(tops[first] | tops[second]) for tops in chosen]
        jaccard[first, second] = jaccard[second, first] = sum(shared) / len(shared) if shared else 0.0
    share = sum(sizes) / sum(len(entry.owner) for entry in neuron_map.neurons)
    return jaccard.tolist(), share / (2 - share)


def overlap(values: list[list[float]], languages: Sequence[str]) -> str:
    """Draw what `overlap_of_languages` found, as a heat map."""
    size = 1.6 + 0.5 * len(values)
    return _heat_map(_figure(size + 0.8, size), values, languages, languages, "Jaccard index")


def conditional_awareness(neuron_map: NeuronMap) -> str:
    """Draw CAR of every pair in its relevant layers (eq. 6)."""
    pairs = neuron_map.language_pairs
    layers = sorted({layer for pair in pairs for layer in neuron_map.layers(pair)})
    values = [
        [neuron_map.car(layer, pair) if layer in neuron_map.layers(pair) else float("nan") for layer in layers]
        for pair in pairs
    ]
    figure = _figure(height=1.2 + 0.35 * len(pairs))
    figure.supxlabel("layer", size="medium")
    return _heat_map(figure, values, pairs, [str(layer) for layer in layers], "CAR")


def index_weights(weights: Mapping[str, Sequence[tuple[float, float]]]) -> str:
    """Draw how much of the target language every layer takes in an LSLo adapter whose index is learned; the rest is
    the source language's."""
    figure, (axes,) = _axes()
    for stack, layers in weights.items():
        axes.plot([target for _, target in layers], linewidth=1, marker=".", label=stack)
    axes.axhline(0.5, color="grey", linewidth=0.5)
    axes.set(xlabel="layer", ylim=(0, 1), ylabel="weight of the target language")
    _legend(figure, axes)
    return _image(figure)


def subspace_demand(demand: Mapping[str, Mapping[str, float]]) -> str:
    """Draw in which layers languages need few of their entries, and in which many, as a heat map."""
    layers = list(dict.fromkeys(layer for of_language in demand.values() for layer in of_language))
    values = [[of_language.get(layer, float("nan")) for layer in layers] for of_language in demand.values()]
    figure = _figure(height=1.6 + 0.35 * len(demand))
    several = len({layer.partition(".")[0] for layer in layers}) > 1
    columns = [layer[0] + layer.partition(".")[2] if several else layer.partition(".")[2] for layer in layers]
    return _heat_map(figure, values, list(demand), columns, "pruned, less the mean", both_signs=True)


def _heat_map(
    figure: Any,
    values: list[list[float]],
    rows: Sequence[str],
    columns: Sequence[str],
    label: str,
    both_signs: bool = False,
) -> str:
    axes = figure.subplots()
    largest = max((abs(value) for line in values for value in line if value == value), default=0.0)
    colours = {"cmap": "RdBu", "vmin": -largest, "vmax": largest} if both_signs else {"cmap": "Blues", "vmin": 0}
    image = axes.imshow(values, aspect="auto", **colours)
    axes.set_xticks(range(len(columns)), columns)
    axes.set_yticks(range(len(rows)), rows)
    for y, line in enumerate(values):
        for x, value in enumerate(line):
            if value == value:
                dark = abs(value) > 0.6 * image.norm.vmax
                axes.text(x, y, f"{value:.2f}", ha="center", va="center", color="white" if dark else "black", size=7)
    figure.colorbar(image, label=label)
    return _image(figure)


def training_curves(log: Sequence[Mapping[str, Any]]) -> str | None:
    """Draw what `LanderTrainer` logged, by step: losses, BLEU, change of every block; None for a log without them."""
    panels = {
        "loss": {"loss": "training", "eval_loss": "evaluation"},
        "loss of a pair in training": {"loss_": ""},
        "BLEU": {"eval_bleu": "mean", "eval_bleu_": ""},
        "change of weights": {"change_": ""},
        "pruned share": {"pruned": "of B"},
    }
    curves: dict[str, dict[str, list[tuple[float, float]]]] = {label: {} for label in panels}
    for entry in log:
        for key, value in entry.items():
            for label, keys in panels.items():
                for start, name in keys.items():
                    part = key.removeprefix(start) if start.endswith("_") and key.startswith(start) else ""
                    if (name and key == start) or re.fullmatch(r"[\w-]+", part):  # a pair, or a block of neurons
                        curves[label].setdefault(name or part, []).append((entry["step"], value))
    drawn = {label: lines for label, lines in curves.items() if lines}
    if not drawn:
        return None
    figure, grid = _axes(len(drawn))
    for axes, (label, lines) in zip(grid, drawn.items(), strict=True):
        for name, points in lines.items():
            axes.plot(*zip(*points, strict=True), marker=".", linewidth=1, label=name)
        axes.set(xlabel="optimizer step", ylabel=label)
        axes.legend(fontsize="small")
    return _image(figure)
