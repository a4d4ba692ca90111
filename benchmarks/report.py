"""Tables and figures of experiments.

    python benchmarks/report.py                          # Markdown tables of what has been run
    python benchmarks/report.py --latex
    python benchmarks/report.py --figures docs/figures   # needs matplotlib

The options that size the experiments are those of `run.py`; runs are found by them.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import figures
from common import shown, table
from compare import compare, comparison_table
from experiments import Scale
from run import add_scale_options, done, planned, read_scale
from runs import Run, Test

Results = dict[str, list[dict[str, Any]]]
"""For every label, the results of all seeds."""
SHOWN = {"bleu": "BLEU", "chrf": "chrF++"}


def collect(plan: dict[str, dict[str, list[Run]]], finished: dict[str, dict[str, Any]]) -> dict[str, Results]:
    """What is there of the experiments; a label counts when all its seeds are done."""
    found: dict[str, Results] = {}
    for experiment, labels in plan.items():
        complete = {
            label: [finished[run.key] for run in runs]
            for label, runs in labels.items()
            if all(run.key in finished for run in runs)
        }
        if complete:
            found[experiment] = complete
    return found


def score_table(results: Results, test: str, metric: str) -> tuple[list[str], list[list[Any]]]:
    """One row for each label: every direction and their mean, averaged over seeds; with several seeds, the spread."""
    pairs = list(next(iter(results.values()))[0]["scores"][test])
    header = [f"{SHOWN[metric]}, {test}", "lr", *pairs, "mean"]
    rows: list[list[Any]] = []
    for label, runs in results.items():
        by_seed = [[run["scores"][test][pair][metric] for pair in pairs] for run in runs]
        means = [fmean(scores) for scores in by_seed]
        spread = f" ± {stdev(means):.2f}" if len(means) > 1 else ""
        rates = ", ".join(dict.fromkeys(f"{run['learning_rate']:g}" for run in runs if "learning_rate" in run))
        columns = [fmean(scores) for scores in zip(*by_seed, strict=True)]
        rows.append([label, rates, *columns, f"{fmean(means):.2f}{spread}"])
    return header, rows


def cost_table(results: Results) -> tuple[list[str], list[list[Any]]]:
    rows = [
        [
            label,
            f"{fmean([run['development_loss'] for run in runs]):.4f}" if "development_loss" in runs[0] else "",
            f"{runs[0].get('trainable_parameters', 0) / 1e6:.2f} M",
            f"{fmean([run.get('train_seconds', 0.0) for run in runs]):.0f}",
        ]
        for label, runs in results.items()
    ]
    return ["", "development loss", "trained", "seconds"], rows


def epoch_table(results: Results) -> tuple[list[str], list[list[Any]]]:
    """The development loss after every epoch, and the lowest, of runs of several; with several seeds, the spread."""
    several = {label: runs for label, runs in results.items() if len(runs[0].get("by_epoch", ())) > 1}
    rows: list[list[Any]] = []
    for label, runs in several.items():
        losses = [[epoch["development_loss"] for epoch in run["by_epoch"]] for run in runs]
        best = [run["development_loss"] for run in runs]
        spread = f" ± {stdev(best):.4f}" if len(best) > 1 else ""
        epochs = [f"{fmean(found):.4f}" for found in zip(*losses, strict=True)]
        rows.append([label, *epochs, f"{fmean(best):.4f}{spread}"])
    count = max((len(row) - 2 for row in rows), default=0)
    return ["development loss after epoch", *range(1, count + 1), "best"], rows


def average_table(results: Results, measure: str, title: str) -> tuple[list[str], list[list[Any]]]:
    """A measure by direction or language, of the runs that have it, averaged over seeds."""
    measured = {label: runs for label, runs in results.items() if all(run.get(measure) for run in runs)}
    columns = list(dict.fromkeys(name for runs in measured.values() for name in runs[0][measure]))
    rows = [
        [label, *(f"{fmean([run[measure][name] for run in runs]):.4g}" for name in columns)]
        for label, runs in measured.items()
    ]
    return [title, *columns], rows


def interference_table(results: Results) -> tuple[list[str], list[list[Any]]]:
    """What a direction gains tuned alone, what the others gain or lose by that, and what it gains with all jointly."""
    rows: list[list[Any]] = []
    for method in ("LoRA", "LANDeRMT"):
        changes = figures.transfer(results, method)
        joint = changes.pop("joint", {})
        others = [change for tuned, row in changes.items() for pair, change in row.items() if pair != tuned]
        if others and joint:
            own = [changes[pair][pair] for pair in changes]
            together = [joint[pair] for pair in changes]
            values = (fmean(own), fmean(others), min(others), max(others), fmean(together))
            rows.append([method, *(f"{value:+.3f}" for value in values)])
    measure = figures.outcome(results["0-shot"][0])[0]
    header = [f"change of {measure}", "tuned alone", "others: mean", "lowest", "highest", "tuned jointly"]
    return header, rows


def significance(results: Results, test: Test, data: Path, path: Path) -> tuple[list[str], list[list[Any]]]:
    """LANDeRMT beside the best other trained method, first seed."""
    others = {
        label: runs[0]
        for label, runs in results.items()
        if not label.startswith("LANDeRMT") and "train_seconds" in runs[0]
    }

    def mean_bleu(label: str) -> float:
        return fmean(row["bleu"] for row in others[label]["scores"][str(test)].values())

    best = max(others, key=mean_bleu)
    compared = compare(results["LANDeRMT"][0], others[best], test, data, path)
    return comparison_table(compared, ("LANDeRMT", best), str(test))


def latex(header: list[str], rows: list[list[Any]]) -> str:
    """A tabular environment."""

    def line(cells: list[Any]) -> str:
        escaped = [shown(cell).replace("_", r"\_").replace("±", r"$\pm$") for cell in cells]
        return " & ".join(escaped) + r" \\"

    body = [line(header), r"\midrule", *map(line, rows)]
    columns = "l" + "r" * (len(header) - 1)
    return "\n".join([rf"\begin{{tabular}}{{{columns}}}", r"\toprule", *body, r"\bottomrule", r"\end{tabular}"])


def print_tables(found: dict[str, Results], scale: Scale, args: argparse.Namespace, form: Callable[..., str]) -> None:
    for experiment, results in found.items():
        print(f"\n## {experiment}\n")
        tables = [score_table(results, str(test), metric) for test in scale.tests for metric in SHOWN]
        tables += [
            cost_table(results),
            epoch_table(results),
            average_table(results, "development_losses", "development loss"),
            average_table(results, "perplexity", "perplexity"),
        ]
        if experiment == "alone" and "0-shot" in results:
            tables.append(interference_table(results))
        if args.data is not None and experiment == "table1" and "LANDeRMT" in results:
            tables += [significance(results, test, args.data, args.results) for test in scale.tests]
        print("\n\n".join(form(*made) for made in tables if made[1]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_scale_options(parser)
    parser.add_argument("--model", default="demo", help="whose runs, by the last part of its name")
    parser.add_argument("--data", type=Path, help="folder with the test sets, for tests of significance")
    parser.add_argument("--latex", action="store_true", help="LaTeX in place of Markdown")
    parser.add_argument("--figures", type=Path, help="folder that figures are drawn into, PNG and SVG")
    args = parser.parse_args()
    scale = read_scale(args)
    found = collect(planned(args, scale), done(args.results, args.model, scale))
    print_tables(found, scale, args, latex if args.latex else table)
    if args.figures is not None:
        figures.draw(found, args.figures, args.results)


if __name__ == "__main__":
    main()
