"""Run the paper's experiments; what is done already is not done again.

    python benchmarks/paper/run.py --data DIR --experiments table1 table2
    python benchmarks/paper/run.py --data DIR --experiments alone --rows 100 --pairs en-de de-en --dry-run

Results are JSON lines, one for each run, with scores, signatures, versions and commit; translations are text files
beside them, for tests of significance. `report.py` makes tables and figures.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from functools import partial
from pathlib import Path
from typing import Any, get_args

sys.path.insert(0, str(Path(__file__).parents[1]))

from common import append_result
from experiments import DIRECTIONS, EXPERIMENTS, Scale, plan
from methods import Run, Workbench

from peft_landermt.detection.layers import ActivationStatistic

RESULTS = Path(__file__).parent / "results" / "paper.jsonl"


def add_scale_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--experiments", nargs="+", choices=EXPERIMENTS, default=list(EXPERIMENTS))
    parser.add_argument("--rows", type=int, default=400, help="sentence pairs per direction")
    parser.add_argument("--search-rows", type=int, default=60, help="to choose a learning rate by; 0: no choice")
    parser.add_argument("--num-layers", type=int, default=4, help="k, relevant layers of a direction")
    parser.add_argument("--activation-statistic", choices=get_args(ActivationStatistic), default="mean")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--pairs", nargs="+", default=list(DIRECTIONS))
    parser.add_argument("--test-lines", type=int, nargs=2, default=[201, 260], help="FLORES lines to score")
    parser.add_argument("--development-only", action="store_true", help="score nothing; measure the development loss")
    parser.add_argument("--news-lines", type=int, nargs=2, help="lines of newstest2014 and newstest2016 to score")
    parser.add_argument(
        "--model", default="demo", help="'demo', a GGUF file, a folder or a Hub id; results know it by its last part"
    )
    parser.add_argument("--results", type=Path, default=RESULTS, help="JSON lines (default: %(default)s)")


def read_scale(args: argparse.Namespace) -> Scale:
    news = tuple(args.news_lines) if args.news_lines else None
    lines = None if args.development_only else tuple(args.test_lines)
    seeds, pairs = tuple(args.seeds), tuple(args.pairs)
    return Scale(args.rows, args.search_rows, args.num_layers, seeds, pairs, lines, news, args.activation_statistic)


def done(path: Path, model: str, scale: Scale) -> dict[str, dict[str, Any]]:
    """Finished runs on a base, by key, which scored these directions of these test sets."""
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    wanted = {str(test) for test in scale.tests}
    results = [json.loads(line) for line in lines]
    return {
        result["key"]: result
        for result in results
        if result["model"] == Path(model).name and wanted <= result["scores"].keys() and _has_pairs(result, scale)
    }


def _has_pairs(result: dict[str, Any], scale: Scale) -> bool:
    return all(set(scale.pairs) <= result["scores"][str(test)].keys() for test in scale.tests[:1])


def translations(results: Path, model: str, key: str, test: str, pair: str) -> Path:
    """Where the translations of a run on a base lie, one a line."""
    return results.with_suffix("") / Path(model).name / key / f"{test}.{pair}.txt"


def write_translations(results: Path, model: str, key: str, test: str, pair: str, hypotheses: list[str]) -> None:
    path = translations(results, model, key, test, pair)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(hypotheses) + "\n", encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with train/, flores200/ and test/")
    add_scale_options(parser)
    parser.add_argument("--labels", nargs="+", help="only these runs of the experiments, as the tables call them")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dry-run", action="store_true", help="print what would be run")
    args = parser.parse_args()

    scale = read_scale(args)
    finished = done(args.results, args.model, scale)
    waiting: dict[str, tuple[str, Run]] = {}
    for experiment, labels in plan(args.experiments, scale).items():
        for label, runs in labels.items():
            for run in runs:
                if run.key not in finished and label in (args.labels or labels):
                    waiting.setdefault(run.key, (f"{experiment}: {label}, seed {run.seed}", run))
    print(f"{len(finished)} runs are done, {len(waiting)} to do", flush=True)
    if args.dry_run:
        for title, run in waiting.values():
            print(f"{title}: {json.dumps(run.to_dict())}")
        return
    if not waiting:
        return
    bench = Workbench(args.data, args.model, args.dtype, args.device, args.results.with_suffix("") / "maps")
    for key, (title, run) in waiting.items():
        print(f"\n{title}", flush=True)
        keep = partial(write_translations, args.results, args.model, key)
        result = bench.execute(run, scale.tests, scale.pairs, keep)
        settings = {"model": Path(args.model).name, "dtype": args.dtype, "device": args.device}
        append_result(args.results, {**result, **settings, "scale": dataclasses.asdict(scale)})


if __name__ == "__main__":
    main()
