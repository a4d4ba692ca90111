"""`landermt train`: an adapter for one or more language pairs from parallel corpora."""

from __future__ import annotations

import argparse
from typing import Any

from .method_options import add_method_options
from .options import add_model_options
from .training_options import add_training_options

_EXAMPLE = """example:
  landermt train --neuron-map map.safetensors --data en-de=corpus.tsv de-en=corpus.de-en.tsv --output out
  landermt train --method lslo --data en-de=corpus.tsv en-wo=corpus.en-wo.tsv --rank en=2 de=2 wo=8 --output out"""


def add_parser(subparsers: Any) -> None:
    parser = subparsers.add_parser(
        "train",
        help="train an adapter",
        description="Train an adapter for one or more language pairs. Corpora: TSV, JSON lines, TMX, the common "
        "prefix of two line-aligned files (corpus for corpus.en and corpus.de), or the name of a data set.",
        epilog=_EXAMPLE,
    )
    add_model_options(parser)
    add_training_options(parser, "kept with the adapter; default: one of ten for each row")
    add_method_options(parser)
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> None:
    from .training import train

    train(options)
