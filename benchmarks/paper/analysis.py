"""What detection sees, drawn as in the paper: activations, awareness, clusters of languages; and what neurons do.

Needs scikit-learn; `report.py --figures` draws what is measured here.

    python benchmarks/paper/analysis.py --data DIR      # a few minutes
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

import torch
from common import languages_of, plain_text_loss, provenance, read_flores
from experiments import DIRECTIONS
from methods import CALIBRATION, DEVELOPMENT
from torch import nn

from peft_landermt import NeuronMap, detect_neurons
from peft_landermt.demo import load_base
from peft_landermt.detection.passes import tap_activations
from peft_landermt.ffn import FFN, find_ffns

RESULTS = Path(__file__).parent / "results" / "paper_analysis.json"
KNOCK_OUT = (146, 165)
"""Lines of FLORES-200 devtest that were used neither to detect nor to choose."""


@contextmanager
def silenced(ffns: Sequence[FFN], neurons: Sequence[torch.Tensor]) -> Iterator[None]:
    """The model with h = 0 at these neurons of every FFN."""

    def silence(_module: nn.Module, args: tuple[torch.Tensor], chosen: torch.Tensor) -> tuple[torch.Tensor]:
        return (args[0].index_fill(-1, chosen.to(args[0].device), 0.0),)

    with ExitStack() as stack:
        for ffn, chosen in zip(ffns, neurons, strict=True):
            output = ffn.module.get_submodule(ffn.output)
            stack.callback(output.register_forward_pre_hook(partial(silence, chosen=chosen)).remove)
        yield


def knock_out(
    model: Any, tokenizer: Any, neuron_map: NeuronMap, sentences: Mapping[str, list[str]]
) -> dict[str, dict[str, dict[str, float]]]:
    """What the loss on plain text of every language gains when one language's specific neurons are silenced.

    Returns:
        `specific` and `random` (as many neurons of each layer, drawn from all): for each language whose neurons are
        silenced, the change of the loss on every language.
    """
    ffns = find_ffns(model)
    base = {language: plain_text_loss(model, tokenizer, texts) for language, texts in sentences.items()}
    generator = torch.Generator().manual_seed(0)
    changes: dict[str, dict[str, dict[str, float]]] = {"specific": {}, "random": {}}
    for language in sentences:
        own = [neuron_map.specific(layer, language) for layer in range(neuron_map.num_layers)]
        drawn = [
            torch.randperm(len(entry.owner), generator=generator)[: len(chosen)]
            for entry, chosen in zip(neuron_map.neurons, own, strict=True)
        ]
        for group, neurons in (("specific", own), ("random", drawn)):
            with silenced(ffns, neurons):
                changes[group][language] = {
                    other: plain_text_loss(model, tokenizer, texts) - base[other] for other, texts in sentences.items()
                }
    return changes


def summary(changes: Mapping[str, Mapping[str, float]]) -> tuple[float, float]:
    """Mean change on the silenced language itself, and on the others."""
    own = [row[language] for language, row in changes.items()]
    others = [value for language, row in changes.items() for other, value in row.items() if other != language]
    return fmean(own), fmean(others)


@torch.no_grad()
def sentence_activations(model: Any, tokenizer: Any, sentences: Mapping[str, list[str]]) -> dict[str, torch.Tensor]:
    """h of every neuron, mean over the tokens of a sentence: (sentences, layers, p) for every language."""
    activations = {}
    hidden: dict[int, torch.Tensor] = {}
    with tap_activations(find_ffns(model), hidden.__setitem__):
        for language, texts in sentences.items():
            rows = []
            for text in texts:
                model(input_ids=torch.tensor([tokenizer(text)["input_ids"]], device=model.device), use_cache=False)
                rows.append(torch.stack([hidden[layer][0].float().mean(dim=0).cpu() for layer in sorted(hidden)]))
            activations[language] = torch.stack(rows)
    return activations


def clusters(activations: Mapping[str, torch.Tensor], neuron_map: NeuronMap) -> dict[str, Any]:
    """Figures 12 and 13: sentences by the activations of general and of specific neurons.

    The silhouette score says how well languages separate: near 1, each is a cluster of its own; near 0, they overlap.
    It is taken over standardised activations, the picture by t-SNE.
    """
    from sklearn.manifold import TSNE
    from sklearn.metrics import silhouette_score

    labels = [language for language, rows in activations.items() for _ in rows]
    stacked = torch.cat(list(activations.values()))
    found = {}
    for group in ("general", "specific"):
        parts = []
        for layer in range(neuron_map.num_layers):
            owner = neuron_map.neurons[layer].owner
            parts.append(stacked[:, layer, (owner < 0) if group == "general" else (owner >= 0)])
        features = torch.cat(parts, dim=1)
        features = ((features - features.mean(dim=0)) / features.std(dim=0).clamp_min(1e-6)).numpy()
        found[group] = {
            "neurons": features.shape[1],
            "silhouette": float(silhouette_score(features, labels)),
            "points": TSNE(random_state=0).fit_transform(features).round(3).tolist(),
        }
    return {"languages": labels, **found}


def measure(args: argparse.Namespace) -> dict[str, Any]:
    model, tokenizer = load_base(args.model, getattr(torch, args.dtype), args.device)
    languages = languages_of(args.pairs)
    sentences = read_flores(args.data, *CALIBRATION, languages)
    found = detect_neurons(model, tokenizer, sentences, args.pairs)
    raw = detect_neurons(model, tokenizer, sentences, args.pairs, normalize_awareness=False)
    activations = sentence_activations(model, tokenizer, read_flores(args.data, *DEVELOPMENT, languages))
    layers = range(found.num_layers)
    return {
        "signature": found.signature,
        "layers": {pair: found.layers(pair) for pair in args.pairs},
        "activation": {language: rows.mean(dim=(0, 2)).tolist() for language, rows in activations.items()},
        "change": {pair: list(found.layer_changes[pair]) for pair in args.pairs},
        "awareness": {
            pair: {
                "specific": [found.awareness_sums(layer, pair)[0] for layer in layers],
                "general": [found.awareness_sums(layer, pair)[1] for layer in layers],
                "all": [sum(raw.awareness_sums(layer, pair)) for layer in layers],
            }
            for pair in args.pairs
        },
        "clusters": clusters(activations, found),
        "knock_out": knock_out(model, tokenizer, found, read_flores(args.data, *KNOCK_OUT, languages)),
    }


def draw(results: dict[str, Any], folder: Path, experiments: Path) -> None:
    """All figures for which there are results, as PNG and SVG."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    pyplot.rcParams["svg.hashsalt"] = "peft_landermt"
    folder.mkdir(parents=True, exist_ok=True)

    def save(figure: Any, name: str) -> None:
        figure.savefig(folder / f"{name}.svg", metadata={"Date": None})
        figure.savefig(folder / f"{name}.png", dpi=120)
        pyplot.close(figure)

    path = experiments.with_name(experiments.stem + "_analysis.json")
    if path.exists():
        _draw_detection(json.loads(path.read_text(encoding="utf-8")), pyplot, save)
    for experiment, name, label in (("layers", "figure_10", "k"), ("ratio", "figure_11", "epsilon")):
        if experiment in results:
            _draw_sweep(results[experiment], pyplot, save, name, label)
    if "alone" in results:
        _draw_transfer(results["alone"], pyplot, save)


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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with flores200/")
    parser.add_argument("--pairs", nargs="+", default=list(DIRECTIONS))
    parser.add_argument("--model", default="demo")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--output", type=Path, default=RESULTS)
    args = parser.parse_args()
    result = {**measure(args), "provenance": provenance()}
    args.output.parent.mkdir(parents=True, exist_ok=True)
    args.output.write_text(json.dumps(result) + "\n", encoding="utf-8")
    for group in ("general", "specific"):
        print(f"{group}: silhouette {result['clusters'][group]['silhouette']:.3f}")
    for group, changes in result["knock_out"].items():
        own, others = summary(changes)
        print(f"{group} neurons of a language silenced: loss {own:+.3f} on it, {others:+.3f} on the others")


if __name__ == "__main__":
    main()
