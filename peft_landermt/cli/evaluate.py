"""`landermt evaluate`: BLEU and chrF++ of a base model or an adapter."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import ConfigError
from ..outputs import write_text
from .corpora import add_data_options, read_corpora
from .options import (
    add_model_options,
    add_prompt_options,
    is_main,
    load_adapted_model,
    parse_assignments,
    processes,
    prompt_template,
    with_texts,
)
from .outputs import add_overwrite_option, claim, write_json
from .score_table import ScoreTable

if TYPE_CHECKING:
    from ..translation import TranslationScores
    from ..translation.significance import Difference

_TEXTS = ("src", "hyp", "ref")
"""Endings of the files of `--texts`."""


def add_parser(subparsers: Any) -> None:
    parser = subparsers.add_parser(
        "evaluate",
        help="score translations of a corpus",
        description="Translate corpora and score the result with sacreBLEU.",
        epilog="example:\n  landermt evaluate --adapter out --data en-de=test.tsv --output scores.json",
    )
    add_model_options(parser, adapter=True)
    add_data_options(parser)
    parser.add_argument("--batch-size", type=int, default=16, help="sentences of a call of generate")
    parser.add_argument("--num-beams", type=int, default=1, help="beams of the search; 1: greedy")
    parser.add_argument("--limit", type=int, help="score only this many sentences of each corpus")
    parser.add_argument("--output", help="JSON file for scores, signatures and translations")
    parser.add_argument(
        "--texts",
        help="folder for sources, translations and references, line by line: en-de.src, en-de.hyp, en-de.ref",
    )
    parser.add_argument(
        "--baseline",
        metavar="FILE",
        help="what this command wrote to --output for another model, to compare with: differences and significance",
    )
    add_prompt_options(parser)
    add_overwrite_option(parser)
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> None:
    from ..translation.models import routing_arguments

    if options.limit is not None and options.limit < 1:
        raise ConfigError("--limit", options.limit, "must be positive.")
    pairs = parse_assignments(options.data, "--data")
    texts = [Path(options.texts, f"{pair}.{ending}") for pair in pairs for ending in _TEXTS] if options.texts else []
    claim(options, [*texts, *([options.output] if options.output else [])])
    corpora = {pair: corpus.examples[: options.limit] for pair, corpus in read_corpora(options).items()}
    baseline = _read_baseline(options, corpora) if options.baseline else {}
    model, tokenizer = load_adapted_model(options)
    for pair in corpora:
        routing_arguments(model, [pair], None)  # an unknown pair is refused before the first is translated
    rows = ScoreTable(bool(baseline)) if is_main(options) else None
    results = {}
    for pair, examples in corpora.items():
        score = _score(model, tokenizer, pair, examples, options)
        if rows is None:
            continue
        sources, references = [example.source for example in examples], [example.target for example in examples]
        results[pair] = with_texts(score, sources, references)
        if baseline:
            compared = compare_with(baseline[pair], score, references)
            results[pair]["baseline"] = {name: found._asdict() for name, found in compared.items()}
        if options.texts:
            write_lines(Path(options.texts), pair, src=sources, hyp=score.hypotheses, ref=references)
        rows.add(pair, results[pair])
        if options.output:
            write_json(options.output, results)
    if rows is not None:
        rows.end(_compare_all(results, baseline) if baseline and len(results) > 1 else {})


def _score(model: Any, tokenizer: Any, pair: str, examples: Any, options: argparse.Namespace) -> TranslationScores:
    from ..translation import evaluate_translation

    return evaluate_translation(
        model,
        tokenizer,
        [example.source for example in examples],
        [example.target for example in examples],
        pair,
        batch_size=options.batch_size,
        num_beams=options.num_beams,
        max_new_tokens=options.max_new_tokens,
        template=prompt_template(options, tokenizer),
        distributed=processes(options) is not None,
        progress=is_main(options),
    )


def _read_baseline(options: argparse.Namespace, corpora: dict[str, Any]) -> dict[str, Any]:
    """Read the scores of `--baseline`, which must be of the same sentences.

    Raises:
        ConfigError: They cannot be read, lack a pair, or are of other sentences.
    """
    from ..report.findings import read_scores

    found = read_scores(Path(options.baseline))
    for pair, examples in corpora.items():
        if pair not in found or found[pair].get("references") != [example.target for example in examples]:
            remedy = (
                f"holds no scores of these sentences for {pair}; write it by landermt evaluate --output, on the same "
            )
            raise ConfigError("--baseline", options.baseline, remedy + "--data and with the same --limit.")
    return found


def compare_with(baseline: dict[str, Any], score: TranslationScores, references: list[str]) -> dict[str, Difference]:
    """Compare scores of a direction with those that `landermt evaluate` wrote for the same sentences."""
    from ..translation import compare_translations

    return compare_translations(score.hypotheses, baseline["hypotheses"], references, score.language_pair)


def _compare_all(results: dict[str, Any], baseline: dict[str, Any]) -> dict[str, Any]:
    """Compare the mean scores over all directions with those of the baseline."""
    from ..translation import compare_over_pairs

    own, other = ({pair: found[pair]["hypotheses"] for pair in results} for found in (results, baseline))
    references = {pair: result["references"] for pair, result in results.items()}
    return {name: found._asdict() for name, found in compare_over_pairs(own, other, references).items()}


def write_lines(folder: Path, name: str, **texts: list[str]) -> None:
    """Write lists of sentences as line-aligned files, one for each keyword."""
    for ending, lines in texts.items():
        content = "".join(" ".join(line.splitlines()) + "\n" for line in lines)
        write_text(folder / f"{name}.{ending}", content)
