"""`landermt translate`: translate lines of text."""

from __future__ import annotations

import argparse
import sys
from typing import Any

from ..translation import translate_counted
from ..translation.lines import read_text_lines
from .options import add_model_options, add_prompt_options, load_adapted_model, prompt_template


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
    add_prompt_options(parser)
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> None:
    lines = read_text_lines(options.input)  # empty ones too: line n is that of the input
    model, tokenizer = load_adapted_model(options)
    found = translate_counted(
        model,
        tokenizer,
        lines,
        options.pair,
        batch_size=options.batch_size,
        num_beams=options.num_beams,
        max_new_tokens=options.max_new_tokens,
        template=prompt_template(options, tokenizer),
    )
    for line in found.texts:
        print(line)
    if found.cut:
        numbers = ", ".join(str(index + 1) for index in found.cut)
        print(
            f"landermt translate: {len(found.cut)} of {len(lines)} translations found no end and were cut: lines "
            f"{numbers}; --max-new-tokens sets the limit",
            file=sys.stderr,
        )
