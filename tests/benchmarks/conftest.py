"""What benchmarks run on here."""

from __future__ import annotations

import csv
from importlib.resources import files
from pathlib import Path

import pytest
from transformers import PreTrainedTokenizerFast

from ..conftest import build_model
from .helpers import write_packed


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory, tokenizer: PreTrainedTokenizerFast) -> Path:
    """A base model, and the package's corpus under the names that benchmarks look for."""
    root = tmp_path_factory.mktemp("paper")
    # examples in the prompt are long
    build_model("llama", max_position_embeddings=2048).save_pretrained(root / "base")
    tokenizer.save_pretrained(root / "base")
    text = (files("peft_landermt") / "demo" / "corpus.tsv").read_text(encoding="utf-8")
    rows = list(csv.DictReader(text.splitlines(), delimiter="\t", quoting=csv.QUOTE_NONE))
    for language in ("de", "fr", "zh", "ar"):
        pairs = (f"{row['en']}\t{row[language]}\tdemo" for row in rows)
        write_packed(root / "data" / "train" / f"en-{language}.tsv.gz", pairs)
    for language in ("en", "de", "fr", "zh", "ar"):
        write_packed(root / "data" / "flores200" / f"devtest.{language}.txt.gz", (row[language] for row in rows))
    return root
