"""The command line `landermt`: one file per subcommand. The library raises; this parses and prints."""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Sequence
from typing import NoReturn

import shtab
from safetensors import SafetensorError

from ..errors import ConfigError
from ..escaping import printable
from ..version import __version__
from . import (
    compose,
    detect,
    evaluate,
    export,
    extend,
    inspect,
    join,
    merge,
    quickstart,
    remove,
    report,
    split,
    train,
    translate,
)
from .config_file import expand
from .messages import in_words_of, our_messages_only

_COMMANDS = (
    *(quickstart, detect, train, evaluate, translate, inspect, report),
    *(extend, compose, remove, split, join, merge, export),
)


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        super().error(printable(message))  # it repeats what it was given


class Help(argparse.RawDescriptionHelpFormatter):
    """Examples keep their lines, and every option tells its default."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        meaning, usual = action.help, action.default
        if not meaning or "default" in meaning or action.nargs == 0 or usual in (None, [], argparse.SUPPRESS):
            return meaning
        told = " ".join(map(str, usual)) if isinstance(usual, list) else str(usual)
        return f"{meaning} (default: {told.replace('%', '%%')})"


def make_parser() -> argparse.ArgumentParser:
    """Make the parser with all subcommands."""
    parser = _Parser(prog="landermt", description="Adapt language models to translation, one language pair at a time.")
    parser.add_argument("--version", action="version", version=f"peft_landermt {__version__}")
    shtab.add_argument_to(parser, help="print a completion script for this shell: eval it, or keep it in a file")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    subparsers = parser.add_subparsers(dest="command", required=True, metavar="command")
    for command in _COMMANDS:
        command.add_parser(subparsers)
    for subparser in subparsers.choices.values():
        subparser.formatter_class = Help
        subparser.add_argument("--config", metavar="FILE", help="YAML file with options, by the names of the flags")
    return parser


def _subparsers(parser: argparse.ArgumentParser) -> dict[str, argparse.ArgumentParser]:
    return next(action.choices for action in parser._actions if isinstance(action, argparse._SubParsersAction))


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a subcommand.

    Args:
        arguments: Command line without the program's name; that of the process by default.

    Returns:
        Exit status: 0, also without arguments, where the help is printed; 2 for bad input, told in one line; 130 when
        interrupted.
    """
    arguments = sys.argv[1:] if arguments is None else arguments
    parser = make_parser()
    if not arguments:
        parser.print_help()
        return 0
    try:
        arguments = expand(arguments, _subparsers(parser))
    except ConfigError as error:
        parser.error(str(error))
    options = parser.parse_args(arguments)
    try:
        with our_messages_only(options.command):
            for method in ("lslo", "lander"):  # register, which the package leaves to this command
                importlib.import_module(f"peft_landermt.{method}")
            options.run(options)
    except (ValueError, OSError, RuntimeError, SafetensorError) as error:
        # ours are ValueErrors; those of transformers, PEFT and torch are about bad input too, as far as it got here
        if options.debug:
            raise
        flags = _subparsers(parser)[options.command]._option_string_actions
        print(f"landermt {options.command}: {printable(in_words_of(flags, error))}", file=sys.stderr)
        return 2
    except KeyboardInterrupt as error:
        print("; ".join(["\nlandermt: interrupted", *(printable(str(text)) for text in error.args)]), file=sys.stderr)
        return 130
    return 0
