"""`landermt export`: one pair of an adapter as a plain LoRA adapter."""

from __future__ import annotations

import argparse
from typing import Any

from .adapted import add_output_options, open_adapter
from .options import add_model_options


def add_parser(subparsers: Any) -> None:
    parser = subparsers.add_parser(
        "export",
        help="write one pair as a LoRA adapter",
        description="Write one language pair of an adapter as a LoRA adapter, which PEFT loads without this package, "
        "as do engines that read LoRA adapters, with a card that has the prompt. For LSLo adapters, and LANDER "
        "adapters whose blocks are all low-rank.",
        epilog="example:\n  landermt export --adapter out --pair en-de --output lora-en-de",
    )
    add_model_options(parser, adapter=True)
    parser.add_argument("--pair", help="direction, such as en-de; needed where the adapter holds several")
    add_output_options(parser)
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> None:
    from ..routed.export import export_lora
    from ..translation.plain_model import save_lora_card

    model, tokenizer = open_adapter(options)
    folder = export_lora(model, options.output, options.pair)
    config = model.peft_config["default"]
    pairs = [options.pair] if options.pair else config.language_pairs or []
    if len(pairs) == 1:
        save_lora_card(model.get_base_model(), tokenizer, folder, pairs[0], config.prompt)
    print(f"written: {folder}")
