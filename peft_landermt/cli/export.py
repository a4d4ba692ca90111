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
    pair = options.pair or model.base_model.routing.pair_of("default")
    if pair is not None:
        save_lora_card(model.get_base_model(), tokenizer, folder, pair, model.peft_config["default"].prompt)
    print(f"written: {folder}")
