"""`landermt translate`: translate lines of text."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from .options import add_model_options, add_prompt_options, load_adapted_model, prompt_template

if TYPE_CHECKING:
    from ..translation import Translations


def add_parser(subparsers: Any) -> None:
    parser = subparsers.add_parser(
        "translate",
        help="translate lines of text",
        description="Translate lines of text, from a file or from standard input, to standard output; on "
        "a terminal, as they are typed.",
        epilog="example:\n  echo 'Good morning.' | landermt translate --adapter out/en-de --pair en-de",
    )
    add_model_options(parser, adapter=True)
    parser.add_argument("--pair", required=True, help="direction, such as en-de")
    parser.add_argument("--input", help="text file, one sentence a line (default: standard input)")
    parser.add_argument("--batch-size", type=int, default=16, help="sentences of a call of generate")
    parser.add_argument("--num-beams", type=int, default=1, help="beams of the search; 1: greedy")
    add_prompt_options(parser)
    parser.set_defaults(run=run)


def _converse(pair: str, translated: Callable[[list[str]], Translations]) -> None:
    """Translate line by line what is typed, until the end of input (Ctrl-D)."""
    print(f"{pair}; one sentence a line, Ctrl-D ends", file=sys.stderr)
    while True:
        try:
            line = input(f"{pair.partition('-')[0]}> ")
        except EOFError:
            print(file=sys.stderr)
            return
        if line.strip():
            print(*translated([line]).texts, flush=True)


def run(options: argparse.Namespace) -> None:
    from ..translation import translate_counted
    from ..translation.lines import read_text_lines

    interactive = options.input is None and sys.stdin.isatty()
    lines = [] if interactive else read_text_lines(options.input)  # empty ones too: line n is that of the input
    model, tokenizer = load_adapted_model(options)

    def translated(texts: list[str]) -> Translations:
        return translate_counted(
            model,
            tokenizer,
            texts,
            options.pair,
            batch_size=options.batch_size,
            num_beams=options.num_beams,
            max_new_tokens=options.max_new_tokens,
            template=prompt_template(options, tokenizer),
        )

    if interactive:
        _converse(options.pair, translated)
        return
    found = translated(lines)
    for line in found.texts:
        print(line)
    if found.cut:
        numbers = ", ".join(str(index + 1) for index in found.cut)
        print(
            f"landermt translate: {len(found.cut)} of {len(lines)} translations found no end and were cut: lines "
            f"{numbers}; --max-new-tokens sets the limit",
            file=sys.stderr,
        )
