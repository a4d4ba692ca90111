"""`landermt extend`: pairs of new languages for an adapter, whose own pairs stay as they are."""

from __future__ import annotations

import argparse
from typing import Any

from ..choices import CHOICES, ROLES
from ..errors import AdapterError
from .options import add_model_options, load_model, prompt_template, require_adapter
from .training_options import add_training_options

_EXAMPLE = """example:
  landermt detect --extends old.map --sentences en=calib.en zh=calib.zh --pairs en-zh zh-en --output new.map
  landermt extend --adapter out --neuron-map new.map --data en-zh=corpus.tsv zh-en=corpus.zh-en.tsv --output out-zh"""


def add_parser(subparsers: Any) -> None:
    parser = subparsers.add_parser(
        "extend",
        help="add pairs of new languages to an adapter",
        description="Add pairs of new languages to a trained adapter, and train them. What the adapter holds is "
        "frozen and stays bit for bit; new languages get blocks of their own. Corpora as for landermt train.",
        epilog=_EXAMPLE,
    )
    add_model_options(parser, adapter=True)
    add_training_options(parser, "must be the one that the adapter was trained with, which is the default")
    parser.add_argument("--neuron-map", required=True, help="from landermt detect --extends the adapter's own map")
    group = parser.add_argument_group("new languages")
    group.add_argument("--specific-rank", type=int, default=4, help="0: whole rows")
    group.add_argument(
        "--tune",
        choices=("pair", "specific"),
        default="pair",
        help="neurons that a block is on: general ones and the language's own, or its own alone",
    )
    group.add_argument(
        "--projections",
        choices=CHOICES["projections"],
        default="all",
        help="projections of these neurons that a block is on",
    )
    group.add_argument(
        "--attention-modules",
        nargs="*",
        choices=ROLES,
        default=list(ROLES),
        metavar="ROLE",
        help="of q, k, v, o: where a new language has factors",
    )
    group.add_argument("--attention-rank", type=int, default=4, help="of these factors")
    group.add_argument(
        "--init-from",
        metavar="LANGUAGE",
        help="what the new blocks begin as copies of: 'general', components of the general block, in whose place they "
        "then stand, or a language that was added earlier (default: without effect)",
    )
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> None:
    from peft import PeftConfig, PeftModel
    from transformers import set_seed

    from ..lander import LanderConfig, add_language_pairs
    from ..translation.models import keep_prompt
    from .training import begin, fit, is_told_without_model, make_collator, usable_corpora

    require_adapter(options)
    checkpoint, corpora = begin(options)
    config = PeftConfig.from_pretrained(options.adapter)
    if not isinstance(config, LanderConfig):
        raise AdapterError("--adapter", options.adapter, f"holds a {config.peft_type} adapter, not a LANDER one.")
    if is_told_without_model(options, corpora):
        return
    set_seed(options.seed)
    base, tokenizer = load_model(options)
    prompt = prompt_template(options, tokenizer) or config.prompt
    model = PeftModel.from_pretrained(base, options.adapter, is_trainable=True)
    add_language_pairs(
        model,
        options.neuron_map,
        corpora.pairs,
        specific_rank=options.specific_rank or None,
        tune=options.tune,
        projections=options.projections,
        attention_modules=options.attention_modules or None,
        attention_rank=options.attention_rank,
        init_from=options.init_from,
    )
    collator = make_collator(options, model, tokenizer, prompt)
    keep_prompt(model, collator.prompt)  # which refuses another than that of the adapter's pairs
    fit(options, model, tokenizer, collator, usable_corpora(corpora, collator, options), checkpoint)
