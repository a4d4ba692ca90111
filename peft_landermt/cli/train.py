"""`landermt train`: an adapter for one or more language pairs from parallel corpora."""

from __future__ import annotations

import argparse
from typing import Any

from peft import PeftConfig, get_peft_model
from transformers import set_seed

from ..attention import ROLES
from ..errors import ConfigError
from ..lander import LanderConfig
from ..lander.config import AUTO
from ..lander.layout import CHOICES
from .options import add_model_options, load_model, prompt_template, task_type
from .training import add_training_options, begin, fit, make_collator, read_rows, select_usable

_EXAMPLE = """example:
  landermt train --neuron-map map.safetensors --data en-de=corpus.tsv de-en=corpus.de-en.tsv --output out"""


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
    parser.add_argument("--neuron-map", help="from landermt detect; without it all neurons of all FFNs are tuned")
    parser.add_argument(
        "--prompt",
        metavar="TEMPLATE",
        help="'chat', the tokenizer's chat template, for instruct models, or a text with {source}, {source_language} "
        "and {target_language}; kept with the adapter for translation (default: one of ten for each row)",
    )
    group = parser.add_argument_group("adapter")
    group.add_argument("--car", choices=CHOICES["car"], default="off")
    group.add_argument("--inactive-neurons", choices=CHOICES["inactive_neurons"], default="keep")
    group.add_argument("--tune", choices=CHOICES["tune"], default="pair")
    group.add_argument("--projections", choices=CHOICES["projections"], default="output", help="of a neuron")
    group.add_argument("--general-rank", type=int, default=16, help="0: whole rows (default: %(default)s)")
    group.add_argument("--specific-rank", type=int, default=4, help="0: whole rows (default: %(default)s)")
    group.add_argument(
        "--attention-modules",
        nargs="+",
        choices=(*ROLES, "none"),
        metavar="ROLE",
        help="of q, k, v, o, shared by all pairs, or none (default: v o where the base's attention is known)",
    )
    group.add_argument("--attention-layers", choices=CHOICES["attention_layers"], default="all")
    group.add_argument("--attention-rank", type=int, default=16, help="(default: %(default)s)")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> None:
    checkpoint = begin(options)
    pairs, rows = read_rows(options)
    if checkpoint is not None:
        _check_resumed(options, checkpoint, pairs)
    config = LanderConfig(
        neuron_map=options.neuron_map,
        language_pairs=pairs,
        car=options.car,
        inactive_neurons=options.inactive_neurons,
        tune=options.tune,
        projections=options.projections,
        general_rank=options.general_rank or None,
        specific_rank=options.specific_rank or None,
        attention_modules=_attention_modules(options.attention_modules),
        attention_layers=options.attention_layers,
        attention_rank=options.attention_rank,
    )
    if options.dry_run:
        print(f"dry run: {len(rows)} rows for {', '.join(config.language_pairs or [])}; nothing trained or written")
        return
    set_seed(options.seed)
    base, tokenizer = load_model(options)
    config.task_type = task_type(base)
    collator = make_collator(options, base, tokenizer, prompt_template(options, tokenizer))
    usable = select_usable(rows, collator, options)
    fit(options, get_peft_model(base, config), tokenizer, collator, usable, checkpoint)


def _attention_modules(roles: list[str] | None) -> Any:
    if roles is None:
        return AUTO
    if "none" in roles and len(roles) > 1:
        raise ConfigError("--attention-modules", roles, "names projections and none of them.")
    return None if "none" in roles else roles


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
