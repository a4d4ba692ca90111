"""`landermt quickstart`: the whole method on a real base model, in minutes."""

from __future__ import annotations

import argparse
from typing import Any

from .options import add_model_options, layer_count
from .outputs import add_overwrite_option


def add_parser(subparsers: Any) -> None:
    parser = subparsers.add_parser(
        "quickstart",
        help="detect, tune and translate on a real base model",
        description="Detect language-aware neurons, tune them, split the adapter into one per language pair, load "
        "these through PEFT and compare translations before and after. The corpus comes with the package.",
        epilog="example:\n  landermt quickstart --pairs en-it it-en --output out",
    )
    add_model_options(parser)
    parser.add_argument("--pairs", nargs="+", default=["en-de", "de-en", "en-fr", "fr-en"], help="directions")
    parser.add_argument("--epochs", type=float, default=1.0, help="times that all rows are trained on")
    parser.add_argument("--lr", type=float, default=1e-3, help="peak learning rate")
    parser.add_argument("--batch-size", type=int, default=8, help="sentences of a forward pass")
    parser.add_argument("--calibration-sentences", type=int, default=24, help="that neurons are found by")
    parser.add_argument("--train-sentences", type=int, default=80, help="per direction")
    parser.add_argument("--test-sentences", type=int, default=24, help="per direction")
    parser.add_argument("--num-layers", type=layer_count, default=4, help="relevant layers of a pair, or 'all'")
    parser.add_argument("--seed", type=int, default=0, help="of the order of rows, their prompts and new weights")
    parser.add_argument("--output", help="folder for the neuron map, the adapters and results.json")
    add_overwrite_option(parser)
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> None:
    from .quickstart_stages import run_stages

    run_stages(options)
