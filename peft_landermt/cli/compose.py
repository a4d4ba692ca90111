"""`landermt compose`: pairs that nobody trained, of languages that an adapter has."""

from __future__ import annotations

import argparse
from typing import Any

from .adapted import add_output_options, open_adapter, save_adapter
from .options import add_model_options


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
    add_output_options(parser)
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> None:
    from ..lander.growth import compose_language_pair

    model, _ = open_adapter(options)
    for pair in options.pairs:
        compose_language_pair(model, pair, neuron_map=options.neuron_map)
    save_adapter(model, options)
