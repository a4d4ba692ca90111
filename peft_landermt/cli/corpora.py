"""Corpora that are named on the command line, and whether they are what their pairs say."""

from __future__ import annotations

import argparse
from itertools import islice
from typing import TYPE_CHECKING

from ..errors import CorpusError
from .options import is_main, parse_assignments

if TYPE_CHECKING:
    from ..translation import Corpus

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


def read_corpora(options: argparse.Namespace, name: str = "data") -> dict[str, Corpus]:
    """Read the corpora of `--data`, or of another option of its form, by pair; a header line is left out.

    Raises:
        CorpusError: A corpus cannot be read, its source and target are exchanged, or two pairs have the same rows, as
            where one TSV is named for both directions.
    """
    from ..translation import read_corpus
    from ..translation.direction import check_directions

    given, flag = getattr(options, name), f"--{name.replace('_', '-')}"
    paths = parse_assignments(given, flag)
    corpora = {
        pair: _without_header(read_corpus(path, pair), pair, path, options, flag) for pair, path in paths.items()
    }
    sample = {
        pair: [corpus.examples[index].to_row() for index in range(0, len(corpus), len(corpus) // _SAMPLED + 1)]
        for pair, corpus in corpora.items()
    }
    for doubt in check_directions(sample):
        if doubt.exchanged and not options.any_language:
            raise CorpusError(flag, given, f"{doubt.text}. --any-language takes it as it is.")
        _tell(options, doubt.text)
    return corpora


def _without_header(corpus: Corpus, pair: str, path: str, options: argparse.Namespace, flag: str) -> Corpus:
    from ..translation import Corpus
    from ..translation.direction import is_header, names_exchanged
    from ..translation.examples import store

    first = corpus.examples[0].to_row()
    if not is_header(first):
        return corpus
    if names_exchanged(first) and not options.any_language:
        remedy = f"its header says {first['source']!r}, then {first['target']!r}; exchange the columns."
        raise CorpusError(flag, f"{pair}={path}", remedy)
    _tell(options, f"{pair}: a header line is left out: {first['source']!r}, {first['target']!r}")
    if len(corpus) == 1:
        raise CorpusError(flag, f"{pair}={path}", "has no row but a header line.")
    return Corpus(store(islice(corpus, 1, None)), corpus.skipped)


def _tell(options: argparse.Namespace, text: str) -> None:
    if is_main(options):
        print(text)
