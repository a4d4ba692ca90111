"""Time, memory and size of LANDeRMT and LSLo beside full finetuning, LoRA, SHiRA and the base model.

    python benchmarks/speed.py --output benchmarks/results/speed.jsonl   # Gemma 3 270M
    python benchmarks/speed.py --shape tiny --repeats 3                  # random weights, seconds
    python benchmarks/speed.py --shape medium --grow                     # how costs grow

All contenders share one base, one batch and one type, and take turns within every repetition. Labels are on the second
half of every row. Peak memory is measured in a process of its own for each contender. `speed_report.py` prints tables.
"""

from __future__ import annotations

import argparse
import gc
import os
import warnings
from pathlib import Path
from typing import Any

from common import append_result
from contenders import CONTENDERS, Bench
from measures import GROWTH, SECTIONS, grow, memory_of
from random_base import SHAPES
from run import add_base_options
from speed_report import speed_tables
from transformers.utils import logging as transformers_logging


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_base_options(parser, dtype="bfloat16")
    parser.add_argument("--shape", choices=["gemma-270m", *SHAPES], help="random weights of this shape instead")
    parser.add_argument("--layers", type=int, help="number of layers of a random shape")
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--length", type=int, default=64, help="tokens of a row")
    parser.add_argument("--new-tokens", type=int, default=32, help="tokens to generate")
    parser.add_argument("--sentences", type=int, default=16, help="calibration sentences of each language")
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--only", nargs="+", choices=SECTIONS, default=list(SECTIONS), help="which measurements")
    parser.add_argument(
        "--contenders", nargs="+", choices=CONTENDERS, default=list(CONTENDERS), help="whose training steps and memory"
    )
    parser.add_argument("--grow", nargs="*", choices=GROWTH, help="measure growth along these axes instead, or all")
    parser.add_argument("--neuron-map", type=Path, help="use this map; made where there is none yet")
    parser.add_argument("--output", type=Path, help="JSON lines file that the results are added to")
    parser.add_argument("--memory-of", choices=CONTENDERS, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.grow is not None and "intermediate_size" not in SHAPES.get(args.shape, {}):
        parser.error("--grow needs a --shape with random weights and an intermediate_size: tiny, medium or llama-8b")
    if args.grow is not None and args.neuron_map is not None:
        parser.error("--grow changes the model, so each has a neuron map of its own; leave --neuron-map out")
    if args.shape == "gemma-270m":
        args.model = "demo"
    return args


def main() -> None:
    args = parse_arguments()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    warnings.simplefilter("ignore")
    if args.memory_of:
        print(memory_of(Bench(args), args.memory_of))
        return
    names = ("model", "dtype", "device", "batch_size", "length", "repeats", "sentences", "new_tokens", "layers")
    settings = {name: getattr(args, name) for name in names}
    settings["model"] = args.shape if args.shape in SHAPES else Path(args.model).name
    results: list[dict[str, Any]] = []

    def keep(result: dict[str, Any]) -> None:
        results.append({**result, "settings": {**settings, "load": [round(load, 2) for load in os.getloadavg()]}})
        append_result(args.output, results[-1])
        gc.collect()

    if args.grow is not None:
        for axis in args.grow or GROWTH:
            for value in GROWTH[axis]:
                print(f"measuring growth with {axis}, step {value}", flush=True)
                keep({"section": "growth", **grow(args, axis, value)})
    else:
        bench = Bench(args)
        settings["neuron_map"] = bench.neuron_map.signature
        for section in args.only:
            print(f"measuring {section}", flush=True)
            keep({"section": section, "measures": SECTIONS[section](bench)})
    print(f"\n{speed_tables(results)}")


if __name__ == "__main__":
    main()
