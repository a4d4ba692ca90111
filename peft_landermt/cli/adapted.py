"""What commands have in common that make an adapter folder of another."""

from __future__ import annotations

import argparse
from typing import Any

from .options import load_adapted_model, require_adapter
from .outputs import ADAPTER, add_overwrite_option, claim_folder


def add_output_options(parser: argparse.ArgumentParser) -> None:
    """Add `--output`, for an adapter folder, and `--overwrite`."""
    parser.add_argument("--output", required=True, help="adapter folder to write")
    add_overwrite_option(parser)


def open_adapter(options: argparse.Namespace) -> tuple[Any, Any]:
    """Claim `--output`, and return the model with the adapter, and the tokenizer.

    Raises:
        AdapterError: There is none named, or it cannot be loaded.
        ConfigError: The output folder cannot be written.
    """
    require_adapter(options)
    claim_folder(options, ADAPTER)
    return load_adapted_model(options)


def save_adapter(model: Any, options: argparse.Namespace) -> None:
    """Write the adapter, and say so."""
    model.save_pretrained(str(options.output))
    print(f"written: {options.output}")
