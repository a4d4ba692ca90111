"""`landermt evaluate`: BLEU and chrF++ of a base model or an adapter."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from ..errors import ConfigError
from ..outputs import write_text
from ..translation import evaluate_translation
from ..translation.models import routing_arguments
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
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--num-beams", type=int, default=1)
    parser.add_argument("--limit", type=int, help="score only this many sentences of each corpus")
    parser.add_argument("--output", help="JSON file for scores, signatures and translations")
    parser.add_argument(
        "--texts",
        help="folder for sources, translations and references, line by line: en-de.src, en-de.hyp, en-de.ref",
    )
    add_prompt_options(parser)
    add_overwrite_option(parser)
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> None:
    if options.limit is not None and options.limit < 1:
        raise ConfigError("--limit", options.limit, "must be positive.")
    pairs = parse_assignments(options.data, "--data")
    texts = [Path(options.texts, f"{pair}.{ending}") for pair in pairs for ending in _TEXTS] if options.texts else []
    claim(options, [*texts, *([options.output] if options.output else [])])
    corpora = read_corpora(options)
    model, tokenizer = load_adapted_model(options)
    for pair in corpora:
        routing_arguments(model, [pair], None)  # an unknown pair is refused before the first is translated
    results = {}
    main = is_main(options)
    if main:
        print("| pair | BLEU | chrF++ | empty | runaway |\n|---|---|---|---|---|")
    for pair, corpus in corpora.items():
        examples = corpus.examples[: options.limit]
        sources, references = [example.source for example in examples], [example.target for example in examples]
        score = evaluate_translation(
            model,
            tokenizer,
            sources,
            references,
            pair,
            batch_size=options.batch_size,
            num_beams=options.num_beams,
            max_new_tokens=options.max_new_tokens,
            template=prompt_template(options, tokenizer),
            distributed=processes(options) is not None,
            progress=main,
        )
        if not main:
            continue
        results[pair] = with_texts(score, sources, references)
        if options.texts:
            write_lines(Path(options.texts), pair, src=sources, hyp=score.hypotheses, ref=references)
        print(
            f"| {pair} | {score.bleu:.2f} | {score.chrf:.2f} | {score.num_empty} | {score.num_runaway} |", flush=True
        )
        print(f"{score.bleu_signature}\n{score.chrf_signature}")
        if options.output:
            write_json(options.output, results)


def write_lines(folder: Path, name: str, **texts: list[str]) -> None:
    """Write lists of sentences as line-aligned files, one for each keyword."""
    for ending, lines in texts.items():
        content = "".join(" ".join(line.splitlines()) + "\n" for line in lines)
        write_text(folder / f"{name}.{ending}", content)
