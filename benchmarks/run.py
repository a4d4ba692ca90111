"""Run experiments with methods; what is done already is not done again.

    python benchmarks/run.py --data DIR --experiments table1 table2
    python benchmarks/run.py --data DIR --experiments alone --rows 100 --pairs en-de de-en --dry-run
    python benchmarks/run.py --data DIR --run '{"method": "lora", "options": {"r": 4}, "learning_rates": [1e-3, 2e-3]}'

`--data` names a folder with `train/en-XX.tsv.gz` and `flores200/devtest.XX.txt.gz`. Results are JSON lines, each added
as its run ends, with scores, signatures, versions and commit; translations are text files beside them, for tests of
significance. `report.py` makes tables and figures.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
from collections.abc import Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor, as_completed
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any, get_args

import torch
from common import RESULTS, append_result, read_results
from experiments import DIRECTIONS, EXPERIMENTS, Scale, by_rate, plan
from runs import Run
from workbench import Workbench, execute_here, open_here

from peft_landermt.detection.layers import ActivationStatistic


def add_base_options(parser: argparse.ArgumentParser, dtype: str = "float32") -> None:
    """Add options that name a base and say how it runs."""
    parser.add_argument("--model", default="demo", help="'demo' (Gemma 3 270M), a GGUF file, a folder or a Hub id")
    parser.add_argument("--dtype", default=dtype, help="of the base's weights (default: %(default)s)")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--attention", help="implementation of the base's attention (default: that of transformers)")


def add_scale_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--experiments", nargs="+", choices=EXPERIMENTS, default=list(EXPERIMENTS))
    parser.add_argument("--run", type=json.loads, help="fields of one Run as JSON, in place of experiments")
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
        "--results", type=Path, default=RESULTS / "paper.jsonl", help="JSON lines (default: %(default)s)"
    )


def read_scale(args: argparse.Namespace) -> Scale:
    news = tuple(args.news_lines) if args.news_lines else None
    lines = None if args.development_only else tuple(args.test_lines)
    seeds, pairs = tuple(args.seeds), tuple(args.pairs)
    return Scale(args.rows, args.search_rows, args.num_layers, seeds, pairs, lines, news, args.activation_statistic)


def planned(args: argparse.Namespace, scale: Scale) -> dict[str, dict[str, list[Run]]]:
    """For every experiment that the options name and each of its labels, one run for each seed."""
    if args.run is not None:
        return plan({"run": partial(by_rate, {"run": args.run})}, scale)
    return plan({name: EXPERIMENTS[name] for name in args.experiments}, scale)


def done(path: Path, model: str, scale: Scale) -> dict[str, dict[str, Any]]:
    """Finished runs on a base, by key, which scored these directions of these test sets."""
    wanted = {str(test) for test in scale.tests}
    return {
        result["key"]: result
        for result in read_results(path)
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


def execute(waiting: Mapping[str, Run], scale: Scale, args: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Results as they come, of one run after another, or of several side by side in processes that share the cores."""
    torch.set_num_threads(max(1, torch.get_num_threads() // args.jobs))
    maps = args.results.with_suffix("") / "maps"
    bench = (args.data, args.model, args.dtype, args.device, maps, args.attention, args.score_batch)
    keep = partial(write_translations, args.results, args.model)
    calls = {title: (run, scale.tests, scale.pairs, partial(keep, run.key)) for title, run in waiting.items()}
    if args.jobs == 1:
        opened = Workbench(*bench)
        for title, call in calls.items():
            print(f"\n{title}", flush=True)
            yield opened.execute(*call)
        return
    processes = ProcessPoolExecutor(
        args.jobs, get_context("spawn"), open_here, initargs=(torch.get_num_threads(), *bench)
    )
    with processes:
        titles = {processes.submit(execute_here, title, *call): title for title, call in calls.items()}
        failed = []
        for future in as_completed(titles):
            if (error := future.exception()) is None:
                yield future.result()
            else:
                print(f"\n{titles[future]} failed: {error!r}", flush=True)
                failed.append(titles[future])
    if failed:
        raise SystemExit(f"{len(failed)} runs failed: {'; '.join(failed)}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with train/, flores200/ and test/")
    add_scale_options(parser)
    parser.add_argument("--labels", nargs="+", help="only these runs of the experiments, as the tables call them")
    add_base_options(parser)
    parser.add_argument("--score-batch", type=int, default=30, help="sentences that are translated together")
    parser.add_argument("--jobs", type=int, default=1, help="runs side by side, which share the threads")
    parser.add_argument("--dry-run", action="store_true", help="print what would be run")
    args = parser.parse_args()

    scale = read_scale(args)
    finished = done(args.results, args.model, scale)
    waiting: dict[str, tuple[str, Run]] = {}
    for experiment, labels in planned(args, scale).items():
        for label, runs in labels.items():
            for run in runs:
                if run.key not in finished and label in (args.labels or labels):
                    waiting.setdefault(run.key, (f"{experiment}: {label}, seed {run.seed}", run))
    print(f"{len(finished)} runs are done, {len(waiting)} to do", flush=True)
    if args.dry_run:
        for title, run in waiting.values():
            print(f"{title}: {json.dumps(run.to_dict())}")
        return
    settings = {"model": Path(args.model).name, "dtype": args.dtype, "device": args.device}
    for result in execute(dict(waiting.values()), scale, args):
        append_result(args.results, {**result, **settings, "scale": dataclasses.asdict(scale)})


if __name__ == "__main__":
    main()
