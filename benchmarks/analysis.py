"""What detection sees, as in the paper's figures: activations, awareness, clusters of languages; what neurons do; and
whether two halves of the sentences find the same ones.

Needs scikit-learn; `report.py --figures` draws what is measured here.

    python benchmarks/analysis.py --data DIR           # a few minutes
    python benchmarks/analysis.py --only stability     # on the package's own sentences
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from common import (
    CALIBRATION,
    DEVELOPMENT,
    KNOCK_OUT,
    RESULTS,
    append_result,
    languages_of,
    plain_text_loss,
    provenance,
    read_flores,
    table,
)
from experiments import DIRECTIONS
from run import add_base_options
from torch import nn

from peft_landermt import NeuronMap, detect_neurons
from peft_landermt.demo import load_base, load_demo_corpus
from peft_landermt.detection.passes import tap_activations
from peft_landermt.ffn import FFN, find_ffns

PARTS = ("figures", "stability")


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


def measure(model: Any, tokenizer: Any, args: argparse.Namespace) -> dict[str, Any]:
    """What the figures show."""
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


def halves(data: Path | None, languages: Sequence[str], sentences: int) -> list[dict[str, list[str]]]:
    """Two disjoint sets of parallel sentences: of FLORES, or of the package's own for calibration."""
    if data is not None:
        texts = read_flores(data, 1, 2 * sentences, list(languages))
    else:
        calibration = load_demo_corpus().calibration
        texts = {language: list(calibration[language]) for language in languages}
    return [{language: rows[start::2][:sentences] for language, rows in texts.items()} for start in (0, 1)]


def agreement(first: NeuronMap, second: NeuronMap, layer: int) -> dict[str, float]:
    """How well two maps agree about one layer.

    Jaccard overlap of their specific neurons, the overlap that chance gives, how often the owner of a neuron found by
    both is the same, and the share of awareness that specific neurons carry.
    """
    owners = [neuron_map.neurons[layer].owner for neuron_map in (first, second)]
    specific = [owner >= 0 for owner in owners]
    both, either = specific[0] & specific[1], specific[0] | specific[1]
    share = float(specific[0].float().mean())
    awareness = first.neurons[layer].awareness.mean(dim=0)
    return {
        "jaccard": float(both.sum() / either.sum()),
        "chance": share / (2 - share),
        "same_owner": float((owners[0] == owners[1])[both].float().mean()),
        "specific_awareness": float(awareness[specific[0]].sum() / awareness.sum()),
    }


def stability(model: Any, tokenizer: Any, args: argparse.Namespace) -> dict[str, Any]:
    """How well two halves of the sentences agree about neurons, layer by layer; printed too."""
    parts = halves(args.data, languages_of(args.pairs), args.sentences)
    first, second = (detect_neurons(model, tokenizer, part, args.pairs[:1], num_layers=1) for part in parts)
    rows = [agreement(first, second, layer) for layer in range(first.num_layers)]
    header = ["layer", "Jaccard", "chance", "same owner", "awareness of specific neurons"]
    print(table(header, [[layer, *row.values()] for layer, row in enumerate(rows)]))
    return {
        "signatures": [first.signature, second.signature],
        "layers": [{"layer": layer, **row} for layer, row in enumerate(rows)],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="folder with flores200/; needed for all but --only stability")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--pairs", nargs="+", default=list(DIRECTIONS))
    parser.add_argument("--sentences", type=int, default=32, help="of each half, for stability")
    add_base_options(parser)
    parser.add_argument("--output", type=Path, default=RESULTS, help="folder (default: %(default)s)")
    args = parser.parse_args()
    if args.data is None and "figures" in args.only:
        parser.error("--data is needed for the figures; --only stability does without")
    model, tokenizer = load_base(args.model, getattr(torch, args.dtype), args.device, args.attention)
    args.output.mkdir(parents=True, exist_ok=True)
    if "stability" in args.only:
        append_result(args.output / "detection_stability.jsonl", stability(model, tokenizer, args))
    if "figures" in args.only:
        result = measure(model, tokenizer, args)
        written = json.dumps({**result, "provenance": provenance()}) + "\n"
        (args.output / "paper_analysis.json").write_text(written, encoding="utf-8")
        for group in ("general", "specific"):
            print(f"{group}: silhouette {result['clusters'][group]['silhouette']:.3f}")
        for group, changes in result["knock_out"].items():
            own, others = summary(changes)
            print(f"{group} neurons of a language silenced: loss {own:+.3f} on it, {others:+.3f} on the others")


if __name__ == "__main__":
    main()
