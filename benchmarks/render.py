"""Print the committed results as Markdown tables.

    python benchmarks/render.py

Reads `benchmarks/results/*.jsonl` and `quickstart.json`; `docs/results.md` quotes what it prints.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"


def read(name: str) -> list[dict[str, Any]]:
    path = RESULTS / name
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.exists() else []


def table(header: list[str], rows: list[list[Any]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    cells = [[f"{cell:.2f}" if isinstance(cell, float) else str(cell) for cell in line] for line in lines]
    return "\n".join(f"| {' | '.join(line)} |" for line in cells)


def finetune() -> str:
    results = read("finetune.jsonl")
    pairs = results[0]["pairs"]
    header = ["method", "lr", *pairs, "mean BLEU", "mean chrF++", "dev loss", "trained", "seconds"]
    rows = []
    for result in results:
        trained = result["method"] != "zero-shot"
        rows.append(
            [
                result["method"],
                f"{result['learning_rate']:g}" if trained else "",
                *(result["scores"][pair]["bleu"] for pair in pairs),
                result["mean_bleu"],
                result["mean_chrf"],
                result["development_loss"],
                f"{result['trainable_parameters'] / 1e6:.2f} M" if trained else "",
                f"{result['train_seconds']:.0f}" if trained else "",
            ]
        )
    searches = [
        f"{result['method']}, development loss by learning rate: "
        + ", ".join(f"{lr}: {loss:.4f}" for lr, loss in result["search"].items())
        for result in results
        if "search" in result
    ]
    return "\n\n".join([table(header, rows), *searches])


def stability() -> str:
    (result,) = read("detection_stability.jsonl")
    keys = ["layer", "jaccard", "chance", "same_owner", "specific_awareness"]
    header = ["layer", "Jaccard", "chance", "same owner", "awareness of specific neurons"]
    return table(header, [[row[key] for key in keys] for row in result["layers"]])


def quickstart() -> str:
    result = json.loads((RESULTS / "quickstart.json").read_text(encoding="utf-8"))
    keys = ["bleu_before", "bleu_after", "chrf_before", "chrf_after"]
    rows = [
        [pair, *(scores[key] for key in keys), f"{scores['adapter_bytes'] / 1e6:.2f} MB"]
        for pair, scores in result["pairs"].items()
    ]
    means = [sum(scores[key] for scores in result["pairs"].values()) / len(rows) for key in keys]
    header = ["pair", "BLEU before", "BLEU after", "chrF++ before", "chrF++ after", "adapter"]
    seconds = ", ".join(f"{stage} {value:.0f}" for stage, value in result["seconds"].items())
    return table(header, [*rows, ["mean", *means, ""]]) + f"\n\nSeconds: {seconds}."


def main() -> None:
    for title, make in (("Quickstart", quickstart), ("Detection", stability), ("Finetuning", finetune)):
        print(f"## {title}\n\n{make()}\n")


if __name__ == "__main__":
    main()
