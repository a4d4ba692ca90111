"""Write the tables of docs/results.md, experiments.md and performance.md from the lines of benchmarks/results.

    python benchmarks/pages.py                     # fills the tables, and draws docs/figures/loss_by_size.svg
    python benchmarks/pages.py --check             # changes nothing; tells what is not up to date

A table stands between `<!-- KIND FILE NAME=VALUE ... -->` and `<!-- end -->`. Kinds are the functions of `KINDS`; FILE
is one of benchmarks/results, and only lines of it are shown whose fields have these values, or one of several with
commas between. All else in the pages is written by hand, and left as it is.
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from statistics import fmean
from typing import Any

import figures
from common import RESULTS, read_results, table
from compare import comparison_table, read_comparison
from growth_report import bleu_table, loss_table, mean_table, runs_of
from lines import Group, Line, best, first_epoch, groups, label, matches, read_lines, spread
from seeds import choices, defaults_beside_lora, over_seeds, scores_over_seeds
from speed_report import by_setting, measure_table, target_table

DOCS = Path(__file__).parents[1] / "docs"
PAGES = ("results.md", "experiments.md", "performance.md")
BLOCK = re.compile(r"(<!-- (\w[\w ]*?) (\S+\.jsonl?)((?: \w+=\S+)*) -->\n).*?(<!-- end -->)", flags=re.S)
Wanted = Mapping[str, str]

SIX = {"model": "gemma-3-270m-trimmed", "rows": "60", "pairs": "6"}
TEN = {"model": "gemma-3-270m-trimmed", "rows": "100", "pairs": "10"}
PLACED = "LANDeRMT, k={}, attention v o, output projections, specific r=4, B at 2"
DEFAULT = "LANDeRMT, k=18, attention q k v o, attention r=6, all projections, general r=6, specific r=2, B at 2"
MAIN = {
    "0-shot": "0-shot",
    "5 examples in the prompt": "5 examples in the prompt",
    "full finetuning": "full finetuning",
    "bottleneck adapters (Houlsby)": "bottleneck adapters",
    "LoRA r=16, all linear layers": "LoRA, all linear layers",
    "LoRA r=16, attention v and o": "LoRA, v o",
    "**LANDeRMT, the defaults**: all linear layers, r=6 and 2": DEFAULT,
    "the same, v and o at four times the rate of others": f"{DEFAULT}, v and o at 4",
    "LANDeRMT, v and o, and 4 FFNs a pair": PLACED.format(4),
    "LANDeRMT, v and o, and all 18 FFNs": PLACED.format(18),
    "LANDeRMT, FFNs alone: all 18": r"LANDeRMT, k=18, rows at [\d.]+",
    "LANDeRMT, FFNs alone: 4 a pair, by \\|h\\|": r"LANDeRMT, k=4, activation_statistic=mean_abs, rows at [\d.]+",
    "LANDeRMT, FFNs alone: 4 a pair": r"LANDeRMT, k=4, rows at [\d.]+",
    "LANDeRMT, the paper's literal choices": r"LANDeRMT, k=4, normalize_awareness=False, general rows, car=paper, .*",
}
"""Rows of the main table: what the runs of each are called in the log."""


def runs(path: Path, wanted: Wanted) -> str:
    """One row for each run, the lowest development loss first; columns that say nothing are left out."""
    lines = sorted(select(path, wanted), key=lambda line: first_epoch(line) or 0.0)
    columns: dict[str, list[Any]] = {
        "": [label(line) for line in lines],
        "pairs": [" ".join(line["pairs"]) for line in lines],
        "rows": [str(line["rows"]) for line in lines],
        "rate": [f"{line['learning_rate']:g}" if "trainable_parameters" in line else "" for line in lines],
        "seed": [str(line["seed"]) for line in lines],
        "development loss": [_losses(line) for line in lines],
        "BLEU": [_mean(line, "bleu") for line in lines],
        "chrF++": [_mean(line, "chrf") for line in lines],
        "trained": [_millions(line.get("trainable_parameters")) for line in lines],
        "commit": [line["provenance"]["commit"] for line in lines],
    }
    told = {"pairs", "rows", "seed", "BLEU", "chrF++"}
    kept = {name: cells for name, cells in columns.items() if name not in told or len(set(cells)) > 1}
    return table(list(kept), [list(row) for row in zip(*kept.values(), strict=True)])


def directions(path: Path, wanted: Wanted) -> str:
    """BLEU by direction, for each run and test set; with `measure=loss` the development loss."""
    named = dict(wanted)
    by_loss = named.pop("measure", "") == "loss"
    lines = select(path, named)
    found: list[tuple[Line, str, dict[str, Any]]] = []
    for line in lines:
        if by_loss:
            found.append(
                (line, "", {pair: f"{loss:.3f}" for pair, loss in line.get("development_losses", {}).items()})
            )
        else:
            tests = line["scores"].items()
            found += [(line, test, {pair: row["bleu"] for pair, row in scores.items()}) for test, scores in tests]
    pairs = list(max((measured for *_, measured in found), key=len))
    told = {"seed": len({line["seed"] for line in lines}) > 1, "test": len({test for _, test, _ in found}) > 1}
    rows = []
    for line, test, measured in found:
        what = [label(line), *([f"on {line['pairs'][0]}"] if len(line["pairs"]) == 1 else [])]
        what += [f"seed {line['seed']}"] * told["seed"] + [test] * told["test"]
        rows.append([", ".join(what), *(measured.get(pair, "") for pair in pairs)])
    return table(["development loss" if by_loss else "BLEU", *pairs], rows)


def main_table(path: Path, wanted: Wanted) -> str:
    """Methods side by side, each at the best of its rates: six directions, and ten, from the file named and others."""
    six = groups(line for name in ("programme.jsonl", "rates.jsonl") for line in select(path.with_name(name), SIX))
    ten = groups(line for name in (path.name, "programme.jsonl") for line in select(path.with_name(name), TEN))
    rows = []
    for shown, pattern in MAIN.items():
        few, many = ([group for group in found if re.fullmatch(pattern, group.label)] for found in (six, ten))
        loss = spread(best(few).losses, 4) if few else ""
        trained = _millions(next((best(found).trained for found in (few, many) if found), None))
        measured = [""] * 3
        if many:
            chosen = best(many)
            measured = [spread(chosen.losses, 4), *(spread(chosen.scores(metric), 2) for metric in ("bleu", "chrf"))]
        rows.append([shown, loss, *measured, trained])
    sizes = ["development loss, 6 × 60 rows", "development loss, 10 × 100 rows", "BLEU", "chrF++"]
    return table(["", *sizes, "trained"], rows)


def select(path: Path, wanted: Wanted) -> list[Line]:
    return [line for line in read_lines(path) if matches(line, wanted)]


def interference(path: Path, wanted: Wanted) -> str:
    """What a direction gains tuned alone, what the others gain or lose by that, and what it gains with all jointly."""
    jointly, lines = select(path, wanted), read_lines(path)
    base = next(line for line in jointly if line["method"] == "zero-shot")["development_losses"]
    alone: dict[tuple[str, float], dict[str, Line]] = {}
    for line in lines:
        if len(line["pairs"]) == 1 and line["pairs"][0] in base:
            alone.setdefault((label(line), line["learning_rate"]), {})[line["pairs"][0]] = line
    rows = []
    for run, tuned in alone.items():
        joint = next(line for line in jointly if (label(line), line["learning_rate"]) == run)
        changes = {pair: _changes(line, base) for pair, line in tuned.items()}
        own = fmean(found[pair] for pair, found in changes.items())
        others = [change for pair, found in changes.items() for other, change in found.items() if other != pair]
        values = (own, fmean(others), min(others), max(others), fmean(_changes(joint, base).values()))
        rows.append([run[0], *(f"{value:+.3f}" for value in values)])
    header = ["change of development loss", "tuned alone", "others: mean", "lowest", "highest", "tuned jointly"]
    return table(header, rows)


def _changes(line: Line, base: Mapping[str, float]) -> dict[str, float]:
    return {pair: line["development_losses"][pair] - loss for pair, loss in base.items()}


def quickstart(path: Path, wanted: Wanted) -> str:
    """Scores of a quickstart."""
    columns = ("bleu_before", "bleu_after", "chrf_before", "chrf_after")
    found = json.loads(path.read_text(encoding="utf-8"))["pairs"]
    rows = [
        [pair, *(row[name] for name in columns), f"{row['adapter_bytes'] / 1e6:.2f} MB"] for pair, row in found.items()
    ]
    rows.append(["mean", *(fmean(row[name] for row in found.values()) for name in columns), ""])
    return table(["pair", "BLEU before", "after", "chrF++ before", "after", "adapter"], rows)


def stability(path: Path, wanted: Wanted) -> str:
    """What two halves of the sentences agree on, layer by layer."""
    (line,) = (json.loads(text) for text in path.read_text(encoding="utf-8").splitlines())
    names = [name for name in line["layers"][0] if name != "layer"]
    rows = [[str(row["layer"]), *(row[name] for name in names)] for row in line["layers"]]
    return table(["layer", *(name.replace("_", " ") for name in names)], rows)


def growth(path: Path, wanted: Wanted) -> str:
    """What was measured of adapters that grow: losses of every run, or with `of=means` over runs, or with `of=bleu`
    BLEU."""
    fields = {name: value for name, value in wanted.items() if name != "of"}
    lines = [
        line
        for line in read_results(path)
        if all(re.fullmatch(value, str(line[name])) for name, value in fields.items())
    ]
    lines.sort(key=lambda line: (line["arm"], line["seed"]))
    tables = {"means": mean_table, "bleu": bleu_table}
    return tables.get(wanted.get("of", ""), loss_table)(runs_of(lines))


def speed(path: Path, wanted: Wanted) -> str:
    """Costs on one model: a measure `of=`, by its title with underscores, or all targets."""
    key = tuple(wanted[name] for name in ("model", "dtype", "device"))
    measures, tokens = by_setting(read_results(path))[key]
    titles = {measure.replace(" ", "_"): measure for measure in measures}
    if "of" not in wanted:
        return target_table(measures)
    return measure_table(titles[wanted["of"]], measures[titles[wanted["of"]]], tokens)


def comparison(path: Path, wanted: Wanted) -> str:
    """Two runs' translations side by side, by the keys of both."""
    (line,) = (line for line in read_results(path) if "-".join(line["keys"]) == wanted["keys"])
    return table(*comparison_table(read_comparison(line), ("first", "second"), line["test"]))


def comparisons(path: Path, wanted: Wanted) -> str:
    """Pairs of runs, over all directions together: a row for each test set and seed."""
    header: list[str] = []
    rows = []
    for line in read_results(path):
        if all(str(line[name]) == value for name, value in wanted.items()):
            together = {"all": read_comparison(line)["all"]}
            head, ((_, *cells),) = comparison_table(together, ("first", "second"), "")
            header = ["paired bootstrap", "seed", *head[1:]]
            rows.append([line["test"], " and ".join(str(seed) for seed in sorted(set(line["seeds"]))), *cells])
    return table(header, sorted(rows, key=lambda row: row[0]))


KINDS: dict[str, Callable[[Path, Wanted], str]] = {
    "runs": runs,
    "directions": directions,
    "main table": main_table,
    "interference": interference,
    "growth": growth,
    "seeds": lambda path, wanted: over_seeds(select(path, wanted)),
    "beside": lambda path, wanted: defaults_beside_lora(select(path, wanted), DEFAULT),
    "scores": lambda path, wanted: scores_over_seeds(select(path, wanted)),
    "comparison": comparison,
    "comparisons": comparisons,
    "choices": lambda path, wanted: choices(select(path, wanted)),
    "quickstart": quickstart,
    "stability": stability,
    "speed": speed,
}


def fill(text: str) -> str:
    """A page with all its tables as the results have them."""

    def filled(block: re.Match[str]) -> str:
        opening, kind, name, options, end = block.groups()
        wanted = dict(option.split("=", 1) for option in options.split())
        return f"{opening}\n{KINDS[kind](RESULTS / name, wanted)}\n\n{end}"

    return BLOCK.sub(filled, text)


KINDS_OF_POINTS = {
    "LoRA": r"LoRA",
    "LANDeRMT, the defaults": re.escape(DEFAULT),
    "LANDeRMT, attention and FFNs": r"LANDeRMT.*attention",
    "LANDeRMT, FFNs alone": r"LANDeRMT",
    "full finetuning, bottleneck adapters": r"",
}
"""What the figure tells apart, by the names in the log; the first that fits."""


def points() -> dict[str, list[tuple[float, float]]]:
    """What the figure shows: trained parameters and losses of the runs with six directions, each at its best rate."""
    found = groups(line for name in ("programme.jsonl", "rates.jsonl") for line in select(RESULTS / name, SIX))
    by_label: dict[str, list[Group]] = {}
    for group in found:
        if group.trained:
            by_label.setdefault(re.sub(r", rows at [\d.]+", "", group.label), []).append(group)
    kinds: dict[str, list[tuple[float, float]]] = {kind: [] for kind in KINDS_OF_POINTS}
    for name, candidates in by_label.items():
        chosen = best(candidates)
        kind = next(kind for kind, pattern in KINDS_OF_POINTS.items() if re.match(pattern, name))
        kinds[kind].append((chosen.trained or 0, fmean(chosen.losses)))
    return kinds


def _losses(line: Line) -> str:
    """After every epoch."""
    losses = [epoch["development_loss"] for epoch in line.get("by_epoch", ())] or [line.get("development_loss")]
    return ", ".join(f"{loss:.4f}" for loss in losses if loss is not None)


def _mean(line: Line, metric: str) -> Any:
    return fmean(row[metric] for row in next(iter(line["scores"].values())).values()) if line["scores"] else ""


def _millions(count: int | None) -> str:
    return f"{count / 1e6:.2f} M" if count else ""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="change nothing, and fail where a page is not up to date")
    args = parser.parse_args()
    old = []
    for name in PAGES:
        text = (DOCS / name).read_text(encoding="utf-8")
        if fill(text) != text:
            old.append(name)
            if not args.check:
                (DOCS / name).write_text(fill(text), encoding="utf-8")
    if args.check:
        raise SystemExit(f"not up to date: {', '.join(old)}" if old else 0)
    else:
        figures.draw_sizes(points(), 1.95, DOCS / "figures" / "loss_by_size.svg")


if __name__ == "__main__":
    main()
