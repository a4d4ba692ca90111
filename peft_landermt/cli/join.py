"""`landermt join`: one adapter from adapters of single language pairs."""

from __future__ import annotations

import argparse
from typing import Any

from .adapted import add_output_options, save_adapter
from .options import add_model_options, load_model
from .outputs import ADAPTER, claim_folder


def add_parser(subparsers: Any) -> None:
    parser = subparsers.add_parser(
        "join",
        help="join adapters that were split",
        description="Join adapters of single language pairs, made by splitting one adapter, into one adapter again.",
        epilog="example:\n  landermt join out/pairs/en-de out/pairs/de-en --output joined",
    )
    add_model_options(parser)
    parser.add_argument("adapters", nargs="+", help="adapter folders")
    add_output_options(parser)
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> None:
    from ..routed.adapters import join_adapters

    claim_folder(options, ADAPTER)
    base, _ = load_model(options)
    save_adapter(join_adapters(base, options.adapters), options)
