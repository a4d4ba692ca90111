"""Corpora that are named on the command line, and whether they are what their pairs say."""

from __future__ import annotations

import argparse
from pathlib import Path

from ..errors import CorpusError
from ..language_pair import LanguagePair, parse_pair
from ..translation import Corpus, read_corpus
from ..translation.direction import check_directions, is_header, names_exchanged
from .options import is_main, parse_assignments

_SAMPLED = 64


def add_data_options(parser: argparse.ArgumentParser) -> None:
    """Add `--data` and `--any-language`."""
    parser.add_argument(
        "--data", nargs="+", required=True, metavar="PAIR=CORPUS", help="of a TSV, the first column is the source"
    )
    parser.add_argument(
        "--any-language",
        action="store_true",
        help="take source and target as they are, although a sample of them looks exchanged",
    )


def read_corpora(options: argparse.Namespace) -> dict[str, Corpus]:
    """The corpora of `--data`, by pair; a header line is left out.

    Raises:
        CorpusError: A corpus cannot be read, one TSV is named for both directions, or source and target of one are
            exchanged.
    """
    paths = parse_assignments(options.data, "--data")
    for pair, path in paths.items():
        other = str(LanguagePair(*reversed(parse_pair(pair))))
        if Path(path).name.removesuffix(".gz").endswith(".tsv") and paths.get(other) == path:
            raise CorpusError(
                "--data",
                f"{pair}={path}",
                f"is named for {other} too, and the columns of a TSV have one order: the source, then the target; "
                "write the other direction to a file of its own.",
            )
    return {pair: _checked(read_corpus(path, pair), pair, path, options) for pair, path in paths.items()}


def _checked(corpus: Corpus, pair: str, path: str, options: argparse.Namespace) -> Corpus:
    rows = [example.to_row() for example in corpus]
    if is_header(rows[0]):
        if names_exchanged(rows[0]) and not options.any_language:
            remedy = f"its header says {rows[0]['source']!r}, then {rows[0]['target']!r}; exchange the columns."
            raise CorpusError("--data", f"{pair}={path}", remedy)
        _tell(options, f"{pair}: a header line is left out: {rows[0]['source']!r}, {rows[0]['target']!r}")
        corpus, rows = Corpus(corpus.examples[1:], corpus.skipped), rows[1:]
        if not rows:
            raise CorpusError("--data", f"{pair}={path}", "has no row but a header line.")
    for doubt in check_directions({pair: rows[:: len(rows) // _SAMPLED + 1]}):
        if doubt.exchanged and not options.any_language:
            raise CorpusError("--data", f"{pair}={path}", f"{doubt.text}. --any-language takes it as it is.")
        _tell(options, doubt.text)
    return corpus


def _tell(options: argparse.Namespace, text: str) -> None:
    if is_main(options):
        print(text)
