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
    parser.add_argument("--by", choices=("pair", "language"), default="pair", help="language: LSLo adapters only")
    add_overwrite_option(parser)
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> None:
    from ..routed.adapters import split_adapter
    from ..routed.config import RoutedConfig

    require_adapter(options)
    model, _ = load_adapted_model(options)
    config = model.peft_config["default"]
    parts = model.base_model.parts("default", config, options.by) if isinstance(config, RoutedConfig) else []
    claim_folder(options, [f"{part}/{name}" for part in parts for name in ADAPTER])
    for part, folder in split_adapter(model, options.output, by=options.by).items():
        print(f"{part}: {folder}")
