"""`landermt train`: an adapter for one or more language pairs from parallel corpora."""

from __future__ import annotations

import argparse
from typing import Any

from ..choices import CHOICES, ROLES
from .corpora import add_data_options
from .options import add_model_options, add_template_option
from .outputs import add_overwrite_option

_EXAMPLE = """example:
  landermt train --neuron-map map.safetensors --data en-de=corpus.tsv de-en=corpus.de-en.tsv --output out"""


def add_parser(subparsers: Any) -> None:
    parser = subparsers.add_parser(
        "train",
        help="train an adapter",
        description="Train an adapter for one or more language pairs. Corpora: TSV, JSON lines, TMX, the common "
        "prefix of two line-aligned files (corpus for corpus.en and corpus.de), or the name of a data set.",
        epilog=_EXAMPLE,
    )
    add_model_options(parser)
    add_data_options(parser)
    parser.add_argument("--check-languages", action="store_true", help="leave out what is in another language")
    parser.add_argument("--neuron-map", help="from landermt detect; without it all neurons of all FFNs are tuned")
    parser.add_argument("--output", required=True, help="adapter folder to write")
    parser.add_argument("--epochs", type=float, default=1.0)
    parser.add_argument("--lr", type=float, default=1e-3, help="peak learning rate (default: %(default)s)")
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument(
        "--accumulation", type=int, default=2, help="batches per optimizer step (default: %(default)s)"
    )
    parser.add_argument("--max-length", type=int, default=512, help="tokens of prompt and translation")
    add_template_option(parser, "kept with the adapter; default: one of ten for each row")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--resume", action="store_true", help="go on from the last whole checkpoint in --output")
    add_overwrite_option(parser)
    parser.add_argument("--save-steps", type=int, default=500, help="steps between checkpoints (default: %(default)s)")
    parser.add_argument(
        "--eval-data",
        nargs="+",
        metavar="PAIR=CORPUS",
        help="held-out corpora: their loss is told by pair at every checkpoint, and the best one is kept",
    )
    parser.add_argument(
        "--patience", type=int, metavar="N", help="stop after N evaluations without a lower loss of --eval-data"
    )
    parser.add_argument("--report-to", nargs="+", default=[], metavar="TRACKER", help="tensorboard, wandb, ...")
    parser.add_argument(
        "--dry-run",
        action="store_true",
        help="check everything, also --model if named; estimate time and memory from two steps; write nothing",
    )
    group = parser.add_argument_group("adapter")
    group.add_argument("--car", choices=CHOICES["car"], default="off")
    group.add_argument("--inactive-neurons", choices=CHOICES["inactive_neurons"], default="keep")
    group.add_argument("--tune", choices=CHOICES["tune"], default="pair")
    group.add_argument("--projections", choices=CHOICES["projections"], default="all", help="of a neuron")
    group.add_argument("--general-rank", type=int, default=16, help="0: whole rows (default: %(default)s)")
    group.add_argument("--specific-rank", type=int, default=0, help="0: whole rows (default: %(default)s)")
    group.add_argument(
        "--attention-modules", nargs="+", choices=ROLES, metavar="ROLE", help="of q, k, v, o; shared by all pairs"
    )
    group.add_argument("--attention-rank", type=int, default=16, help="(default: %(default)s)")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> None:
    from .training import train

    train(options)
