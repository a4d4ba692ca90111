"""`landermt compose`: pairs that nobody trained, of languages that an adapter has."""

from __future__ import annotations

import argparse
from typing import Any

from .options import add_model_options, load_adapted_model, require_adapter
from .outputs import ADAPTER, add_overwrite_option, claim_folder


def add_parser(subparsers: Any) -> None:
    parser = subparsers.add_parser(
        "compose",
        help="add pairs that nobody trained, of languages that an adapter has",
        description="Add pairs to an adapter that use the blocks of both of their languages, without training.",
        epilog="example:\n  landermt compose --adapter out --pairs de-fr fr-de --output out-composed",
    )
    add_model_options(parser, adapter=True)
    parser.add_argument("--pairs", nargs="+", required=True, help="directions, such as de-fr fr-de")
    parser.add_argument("--neuron-map", help="the adapter's; needed where it gates or drops neurons")
    parser.add_argument("--output", required=True, help="adapter folder to write")
    add_overwrite_option(parser)
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> None:
    from ..lander.growth import compose_language_pair

    require_adapter(options)
    claim_folder(options, ADAPTER)
    model, _ = load_adapted_model(options)
    for pair in options.pairs:
        compose_language_pair(model, pair, neuron_map=options.neuron_map)
    model.save_pretrained(str(options.output))
    print(f"written: {options.output}")
