"""`landermt remove`: an adapter without some of its pairs."""

from __future__ import annotations

import argparse
from typing import Any

from .adapted import add_output_options, open_adapter, save_adapter
from .options import add_model_options


def add_parser(subparsers: Any) -> None:
    parser = subparsers.add_parser(
        "remove",
        help="take pairs out of an adapter",
        description="Take pairs out of an adapter, with the blocks that no other pair needs; all else stays as it is.",
        epilog="example:\n  landermt remove --adapter out --pairs en-zh zh-en --output out-without",
    )
    add_model_options(parser, adapter=True)
    parser.add_argument("--pairs", nargs="+", required=True, help="directions, such as en-zh zh-en")
    add_output_options(parser)
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> None:
    from ..lander.growth import remove_language_pairs

    model, _ = open_adapter(options)
    remove_language_pairs(model, options.pairs)
    save_adapter(model, options)
