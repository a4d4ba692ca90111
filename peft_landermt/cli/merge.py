"""`landermt merge`: a plain model with an adapter in its weights, for programs that know nothing of adapters."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from ..errors import AdapterError, ConfigError
from ..outputs import new_folder
from .options import add_model_options, load_adapted_model, require_adapter


def add_parser(subparsers: Any) -> None:
    parser = subparsers.add_parser(
        "merge",
        help="write a plain model for one pair",
        description="Write an adapter into the weights of its base, for one language pair. The folder loads with "
        "transformers alone, and so with the converters of llama.cpp and CTranslate2, and others that read such "
        "folders. Its weights have the type that the base's have on disk, unless --dtype names one.",
        epilog="example:\n  landermt merge --adapter out --pair en-de --output model-en-de",
    )
    add_model_options(parser, adapter=True)
    parser.add_argument("--pair", help="direction, such as en-de; needed where the adapter holds several")
    parser.add_argument("--output", required=True, help="folder to write, which must not exist or be empty")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> None:
    from ..translation.plain_model import save_plain_model

    require_adapter(options)
    folder = Path(options.output)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ConfigError("--output", options.output, "is there already; name a folder that is not, or is empty.")
    model, tokenizer = load_adapted_model(options, as_stored=True)
    if options.pair:
        if not hasattr(model, "set_language_pair"):
            raise AdapterError("--adapter", options.adapter, "is no LANDER or LSLO adapter; leave out --pair.")
        model.set_language_pair(options.pair)
    config = model.peft_config["default"]
    pairs = [options.pair] if options.pair else getattr(config, "language_pairs", None) or []
    merged = model.merge_and_unload(safe_merge=True)
    with new_folder(folder) as partial:
        if len(pairs) == 1:
            save_plain_model(merged, tokenizer, partial, pairs[0], getattr(config, "prompt", None))
        else:
            merged.save_pretrained(partial)
            tokenizer.save_pretrained(partial)
    print(f"written: {folder}")
