"""How well two halves of the calibration sentences agree about neurons, layer by layer.

    python benchmarks/detection_stability.py            # the package's own calibration sentences
    python benchmarks/detection_stability.py --data DIR # FLORES-200 devtest lines 1 to 64

For every layer: Jaccard overlap of the specific neurons of the two halves, the overlap that chance gives, how often
the owner language of a neuron found by both is the same, and the share of awareness that specific neurons carry.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch
from common import append_result, read_flores

from peft_landermt import NeuronMap, detect_neurons
from peft_landermt.demo import load_base, load_demo_corpus


def halves(data: Path | None, languages: list[str], sentences: int) -> list[dict[str, list[str]]]:
    """Two disjoint sets of parallel sentences."""
    if data is not None:
        texts = read_flores(data, 1, 2 * sentences, languages)
    else:
        calibration = load_demo_corpus().calibration
        texts = {language: list(calibration[language]) for language in languages}
    return [{language: rows[start::2][:sentences] for language, rows in texts.items()} for start in (0, 1)]


def compare(first: NeuronMap, second: NeuronMap, layer: int) -> dict[str, float]:
    """Agreement of two maps about one layer."""
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="folder with flores200/; the package's own sentences by default")
    parser.add_argument("--languages", nargs="+", default=["en", "de", "fr", "it", "ar", "zh"])
    parser.add_argument("--sentences", type=int, default=32, help="sentences of each half")
    parser.add_argument("--general-ratio", type=float, default=0.9)
    parser.add_argument("--model", default="demo")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--output", type=Path, help="JSON lines file that the result is added to")
    args = parser.parse_args()

    model, tokenizer = load_base(args.model, getattr(torch, args.dtype), args.device)
    pair = f"{args.languages[0]}-{args.languages[1]}"
    maps = [
        detect_neurons(model, tokenizer, half, [pair], num_layers=1, general_ratio=args.general_ratio)
        for half in halves(args.data, args.languages, args.sentences)
    ]
    print("| layer | Jaccard | chance | same owner | awareness of specific neurons |\n|---|---|---|---|---|")
    rows: list[dict[str, Any]] = []
    for layer in range(maps[0].num_layers):
        row = compare(maps[0], maps[1], layer)
        rows.append({"layer": layer, **row})
        print(
            f"| {layer} | {row['jaccard']:.2f} | {row['chance']:.2f} | {row['same_owner']:.2f} | "
            f"{row['specific_awareness']:.2f} |"
        )
    owner = torch.tensor([row["same_owner"] for row in rows]).mean()
    jaccard = [row["jaccard"] for row in rows]
    print(f"\nJaccard {min(jaccard):.2f} to {max(jaccard):.2f}; same owner on average {owner:.2f}")
    append_result(args.output, {"signatures": [neuron_map.signature for neuron_map in maps], "layers": rows})


if __name__ == "__main__":
    main()
