"""`landermt train`: an adapter for one or more language pairs from parallel corpora."""

from __future__ import annotations

import argparse
from typing import Any

from peft import PeftConfig, get_peft_model
from transformers import set_seed

from ..errors import ConfigError
from .methods import add_method_options, callbacks_of, config_of
from .options import add_model_options, load_model, prompt_template, task_type
from .training import add_training_options, begin, fit, make_collator, read_rows, select_usable

_EXAMPLE = """example:
  landermt train --neuron-map map.safetensors --data en-de=corpus.tsv de-en=corpus.de-en.tsv --output out
  landermt train --method lslo --data en-de=corpus.tsv en-wo=corpus.en-wo.tsv --rank en=2 de=2 wo=8 --output out"""


def add_parser(subparsers: Any) -> None:
    parser = subparsers.add_parser(
        "train",
        help="train an adapter",
        description="Train an adapter for one or more language pairs. Corpora: TSV, JSON lines, TMX, the common "
        "prefix of two line-aligned files (corpus for corpus.en and corpus.de), or the name of a data set.",
        epilog=_EXAMPLE,
    )
    add_model_options(parser)
    add_training_options(parser)
    parser.add_argument(
        "--prompt",
        metavar="TEMPLATE",
        help="'chat', the tokenizer's chat template, for instruct models, or a text with {source}, {source_language} "
        "and {target_language}; kept with the adapter for translation (default: one of ten for each row)",
    )
    add_method_options(parser)
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> None:
    checkpoint = begin(options)
    pairs, rows = read_rows(options)
    if checkpoint is not None:
        _check_resumed(options, checkpoint, pairs)
    config, callbacks = config_of(options, pairs), callbacks_of(options)
    if options.dry_run:
        print(f"dry run: {len(rows)} rows for {', '.join(pairs)}; nothing trained or written")
        return
    set_seed(options.seed)
    base, tokenizer = load_model(options)
    config.task_type = task_type(base)
    collator = make_collator(options, base, tokenizer, prompt_template(options, tokenizer))
    usable = select_usable(rows, collator, options)
    fit(options, get_peft_model(base, config), tokenizer, collator, usable, checkpoint, callbacks)


def _check_resumed(options: argparse.Namespace, checkpoint: str, pairs: list[str]) -> None:
    """Check that training goes on with the pairs that it began with."""
    held = getattr(PeftConfig.from_pretrained(checkpoint), "language_pairs", None) or pairs
    new = [pair for pair in pairs if pair not in held]
    if new:
        raise ConfigError(
            "--data",
            ", ".join(new),
            f"is new to the run in {options.output}, which has {', '.join(held)}. To add pairs to its adapter: "
            f"landermt extend --adapter {options.output} --neuron-map MAP --data {new[0]}=... --output DIR.",
        )
