"""`landermt translate`: translate lines of text."""

from __future__ import annotations

import argparse
from typing import Any

from ..translation import translate
from ..translation.lines import read_text_lines
from .options import add_model_options, load_adapted_model


def add_parser(subparsers: Any) -> None:
    parser = subparsers.add_parser(
        "translate",
        help="translate lines of text",
        description="Translate lines of text, from a file or from standard input, to standard output.",
        epilog="example:\n  echo 'Good morning.' | landermt translate --adapter out/en-de --pair en-de",
    )
    add_model_options(parser, adapter=True)
    parser.add_argument("--pair", required=True, help="direction, such as en-de")
    parser.add_argument("--input", help="text file, one sentence a line (default: standard input)")
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--num-beams", type=int, default=1)
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> None:
    lines = read_text_lines(options.input)  # empty ones too: line n is that of the input
    model, tokenizer = load_adapted_model(options)
    for line in translate(
        model, tokenizer, lines, options.pair, batch_size=options.batch_size, num_beams=options.num_beams
    ):
        print(line)
