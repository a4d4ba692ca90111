"""`landermt split`: one adapter folder per language pair."""

from __future__ import annotations

import argparse
from typing import Any

from .options import add_model_options, load_adapted_model, require_adapter
from .outputs import ADAPTER, add_overwrite_option, claim_folder


def add_parser(subparsers: Any) -> None:
    parser = subparsers.add_parser(
        "split",
        help="split an adapter into one folder per pair",
        description="Split an adapter of several language pairs into one adapter folder per pair.",
        epilog="example:\n  landermt split --adapter out --output out/pairs",
    )
    add_model_options(parser, adapter=True)
    parser.add_argument("--output", required=True, help="folder for the pairs' folders")
    add_overwrite_option(parser)
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> None:
    from ..lander.adapters import split_adapter

    require_adapter(options)
    model, _ = load_adapted_model(options)
    pairs = getattr(model.peft_config["default"], "language_pairs", None) or []
    claim_folder(options, [f"{pair}/{name}" for pair in pairs for name in ADAPTER])
    for pair, folder in split_adapter(model, options.output).items():
        print(f"{pair}: {folder}")
