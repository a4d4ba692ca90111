"""Options of the commands that train an adapter: corpora, the run, its folder."""

from __future__ import annotations

import argparse

from .corpora import add_data_options
from .options import add_template_option
from .outputs import add_overwrite_option


def add_training_options(parser: argparse.ArgumentParser, template: str) -> None:
    """Add them.

    Args:
        parser: Of a command.
        template: What the help says of `--template`.
    """
    add_data_options(parser)
    parser.add_argument("--check-languages", action="store_true", help="leave out what is in another language")
    parser.add_argument("--output", required=True, help="adapter folder to write")
    parser.add_argument("--epochs", type=float, default=1.0, help="times that all rows are trained on")
    parser.add_argument("--lr", type=float, default=5e-4, help="peak learning rate")
    parser.add_argument("--batch-size", type=int, default=8, help="sentence pairs of a forward pass")
    parser.add_argument("--accumulation", type=int, default=2, help="batches per optimizer step")
    parser.add_argument("--max-length", type=int, default=512, help="tokens of prompt and translation")
    add_template_option(parser, template)
    parser.add_argument("--seed", type=int, default=0, help="of the order of rows, their prompts and new weights")
    parser.add_argument("--resume", action="store_true", help="go on from the last whole checkpoint in --output")
    add_overwrite_option(parser)
    parser.add_argument("--save-steps", type=int, default=500, help="steps between checkpoints")
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
