"""`landermt remove`: an adapter without some of its pairs."""

from __future__ import annotations

import argparse
from typing import Any

from .options import add_model_options, load_adapted_model, require_adapter
from .outputs import ADAPTER, add_overwrite_option, claim_folder


def add_parser(subparsers: Any) -> None:
    parser = subparsers.add_parser(
        "remove",
        help="take pairs out of an adapter",
        description="Take pairs out of an adapter, with the blocks that no other pair needs; all else stays as it is.",
        epilog="example:\n  landermt remove --adapter out --pairs en-zh zh-en --output out-without",
    )
    add_model_options(parser, adapter=True)
    parser.add_argument("--pairs", nargs="+", required=True, help="directions, such as en-zh zh-en")
    parser.add_argument("--output", required=True, help="adapter folder to write")
    add_overwrite_option(parser)
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> None:
    from ..lander.growth import remove_language_pairs

    require_adapter(options)
    claim_folder(options, ADAPTER)
    model, _ = load_adapted_model(options)
    remove_language_pairs(model, options.pairs)
    model.save_pretrained(str(options.output))
    print(f"written: {options.output}")
