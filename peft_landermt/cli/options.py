"""Options that several subcommands share, and how they become models and corpora."""

from __future__ import annotations

import argparse
import os
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import AdapterError, ConfigError

if TYPE_CHECKING:
    from accelerate import PartialState

    from ..translation import TranslationScores

DTYPES = ("auto", "float32", "bfloat16", "float16")


def add_model_options(parser: argparse.ArgumentParser, adapter: bool = False) -> None:
    """Add `--model`, `--dtype`, `--device` and, if asked for, `--adapter`."""
    parser.add_argument(
        "--model",
        help="base model: a folder, a Hub id, a GGUF file, or 'demo', Gemma 3 270M (default: the base that the "
        "adapter names; without an adapter, demo)",
    )
    parser.add_argument(
        "--dtype",
        choices=DTYPES,
        default="auto",
        help="type of the base weights; auto: float32 on a CPU, else bfloat16",
    )
    parser.add_argument("--device", default=None, help="cpu, cuda, ... (default: cuda where there is one)")
    if adapter:
        parser.add_argument("--adapter", help="adapter folder or Hub id; without it, the base model is used")


def load_model(options: argparse.Namespace, as_stored: bool = False) -> tuple[Any, Any]:
    """Load the base model and its tokenizer, as the options say; with `as_stored`, `--dtype auto` is the type on
    disk."""
    import torch
    from transformers.utils import logging as transformers_logging

    from ..demo import load_base

    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    state = processes(options)
    alone = "cuda" if torch.cuda.is_available() else "cpu"
    device = options.device or (alone if state is None else str(state.device))
    automatic = torch.float32 if device == "cpu" else torch.bfloat16
    dtype = automatic if options.dtype == "auto" else getattr(torch, options.dtype)
    return load_base(base_name(options), "auto" if as_stored and options.dtype == "auto" else dtype, device)


def base_name(options: argparse.Namespace) -> str:
    """Return `--model`; else the base that the adapter was made on; else the demo base.

    Raises:
        ConfigError: The adapter names no base, or a folder that is not there.
    """
    adapters = [getattr(options, "adapter", None), *getattr(options, "adapters", ())]
    adapter = next((adapter for adapter in adapters if adapter), None)
    if options.model is not None or adapter is None:
        return str(options.model or "demo")
    from peft import PeftConfig

    from ..cache import DEMO_NAME

    named = PeftConfig.from_pretrained(adapter).base_model_name_or_path
    if named and Path(named).is_absolute() and not Path(named).exists():
        if Path(named).name == DEMO_NAME:  # in the cache of the machine that it was made on
            return "demo"
        raise ConfigError("--model", named, "the adapter was made on it, and it is not here; name the base model.")
    if not named:
        raise ConfigError("--model", None, f"{adapter} names no base model; name it.")
    return str(named)


def add_template_option(parser: argparse.ArgumentParser, default: str) -> None:
    """Add `--template`, also called `--prompt`; `default` ends its help."""
    parser.add_argument(
        "--template",
        "--prompt",
        dest="prompt",
        help="'chat', the tokenizer's chat template, for instruct models, or a text with {source}, {source_language} "
        f"and {{target_language}} ({default})",
    )


def add_prompt_options(parser: argparse.ArgumentParser) -> None:
    """Add `--template` and `--max-new-tokens`."""
    add_template_option(parser, "default: the one that the adapter was trained with")
    parser.add_argument(
        "--max-new-tokens", type=int, help="limit for a translation (default: more than any needs, by its source)"
    )


def prompt_template(options: argparse.Namespace, tokenizer: Any) -> str | None:
    """Return the template that `--template` asks for; None without one."""
    from ..translation import chat_prompt

    return chat_prompt(tokenizer) if options.prompt == "chat" else options.prompt


def processes(options: argparse.Namespace) -> PartialState | None:
    """Return the processes that `accelerate launch` or torchrun started; None where this is the only one."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return None
    from accelerate import PartialState

    return PartialState(cpu=options.device == "cpu")


def is_main(options: argparse.Namespace) -> bool:
    """Tell whether this process prints and writes."""
    state = processes(options)
    return state is None or state.is_main_process


def task_type(model: Any) -> str:
    """Return PEFT's name for what the model does."""
    from ..seq2seq import is_encoder_decoder

    return "SEQ_2_SEQ_LM" if is_encoder_decoder(model) else "CAUSAL_LM"


def load_adapted_model(options: argparse.Namespace, as_stored: bool = False) -> tuple[Any, Any]:
    """Load the base model with `--adapter`, if one is named, and its tokenizer; see `load_model`."""
    from peft import PeftModel

    model, tokenizer = load_model(options, as_stored)
    return (PeftModel.from_pretrained(model, options.adapter) if options.adapter else model), tokenizer


def require_adapter(options: argparse.Namespace) -> None:
    """Raise AdapterError if a command that changes an adapter was given none."""
    if not options.adapter:
        raise AdapterError("--adapter", None, f"name the adapter folder to {options.command}.")


def layer_count(value: str) -> int | str:
    """Read a number of layers, or `all`."""
    return value if value == "all" else int(value)


def parse_assignments(values: list[str], option: str) -> dict[str, str]:
    """Read `["en-de=corpus.tsv", ...]` as a dictionary.

    Raises:
        ConfigError: A value has no `=`, or a key comes twice.
    """
    parsed: dict[str, str] = {}
    for value in values:
        key, separator, rest = value.partition("=")
        if not separator or not rest or key in parsed:
            raise ConfigError(option, value, "expected KEY=FILE, each key once, such as en-de=corpus.tsv.")
        parsed[key] = rest
    return parsed


def with_texts(score: TranslationScores, sources: list[str], references: list[str]) -> dict[str, Any]:
    """Give scores of a direction with all texts, as `landermt report` reads them."""
    return {**asdict(score), "sources": sources, "references": references}


def read_lines(path: str) -> list[str]:
    """Read the lines of a text file without their ends; empty lines at the end are left out."""
    from ..translation.lines import read_text_lines

    lines = read_text_lines(path)
    while lines and not lines[-1]:
        lines.pop()
    return lines
