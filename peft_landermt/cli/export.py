"""`landermt export`: one pair of an adapter as a plain LoRA adapter."""

from __future__ import annotations

import argparse
from typing import Any

from .options import add_model_options, load_adapted_model, require_adapter
from .outputs import ADAPTER, add_overwrite_option, claim_folder


def add_parser(subparsers: Any) -> None:
    parser = subparsers.add_parser(
        "export",
        help="write one pair as a LoRA adapter",
        description="Write one language pair of an adapter as a LoRA adapter, which PEFT loads without this package, "
        "as do engines that read LoRA adapters. For LSLo adapters, and LANDER adapters whose blocks are all low-rank.",
        epilog="example:\n  landermt export --adapter out --pair en-de --output lora-en-de",
    )
    add_model_options(parser, adapter=True)
    parser.add_argument("--pair", help="direction, such as en-de; needed where the adapter holds several")
    parser.add_argument("--output", required=True, help="adapter folder to write")
    add_overwrite_option(parser)
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> None:
    from ..routed.export import export_lora

    require_adapter(options)
    claim_folder(options, ADAPTER)
    model, _ = load_adapted_model(options)
    print(f"written: {export_lora(model, options.output, options.pair)}")
