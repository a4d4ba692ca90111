"""What looks right on the command line and is not: refused, told, or made right."""

from __future__ import annotations

import gzip
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from peft import PeftConfig
from transformers import PreTrainedTokenizerFast

from peft_landermt.cli import main

from ..conftest import build_model
from ..prompt_tokenizers import CHATS, byte_tokenizer
from ..translation.test_limits import HUMAN_RIGHTS

EN, DE, RU = (HUMAN_RIGHTS[code] for code in ("en", "de", "ru"))


@pytest.fixture(autouse=True)
def _offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny instruct model."""
    folder = tmp_path_factory.mktemp("base") / "tiny"
    tokens, chat, *_ = CHATS["ChatML (Qwen, Tower, EuroLLM)"]
    tokenizer = byte_tokenizer(added=tokens)
    tokenizer.chat_template = chat
    tokenizer.save_pretrained(folder)
    build_model("llama", vocab_size=len(tokenizer), max_position_embeddings=1024).save_pretrained(folder)
    return folder


def write(path: Path, *rows: tuple[str, str]) -> Path:
    text = "".join(f"{source}\t{target}\n" for source, target in rows)
    path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())
    return path


def dry(*data: str, options: tuple[str, ...] = ()) -> int:
    return main(["train", "--data", *data, "--output", "unused", "--dry-run", *options])


def train(base: Path, corpus: Path, output: Path, *options: str) -> int:
    sizes = ["--batch-size", "2", "--accumulation", "1", "--general-rank", "2", "--device", "cpu"]
    return main(
        ["train", "--model", str(base), "--data", f"en-de={corpus}", "--output", str(output), *sizes, *options]
    )


# Corpora


@pytest.mark.parametrize("name", ["corpus.tsv", "corpus.tsv.gz"])
@pytest.mark.parametrize("other", ["{}", "{0.parent}/../{0.parent.name}/{0.name}"])
def test_one_file_for_both_directions(
    name: str, other: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write(tmp_path / name, (EN, DE))
    assert dry(f"en-de={path}", f"de-en={other.format(path)}") == 2
    assert "have the same sources and targets" in capsys.readouterr().err


@pytest.mark.parametrize(("pair", "rows"), [("en-de", (DE, EN)), ("en-ru", (RU, EN)), ("eng_Latn-deu", (DE, EN))])
@pytest.mark.parametrize("form", ["tsv", "jsonl", "moses"])
def test_exchanged_columns(
    pair: str, rows: tuple[str, str], form: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / f"corpus.{form}"
    if form == "tsv":
        write(path, rows)
    elif form == "jsonl":
        path.write_text(json.dumps({"source": rows[0], "target": rows[1]}), encoding="utf-8")
    else:
        path = tmp_path / "corpus"
        for code, text in zip(pair.split("-"), rows, strict=True):
            Path(f"{path}.{code}").write_text(text + "\n", encoding="utf-8")
    assert dry(f"{pair}={path}") == 2
    assert f"sources and targets of {pair} look exchanged" in capsys.readouterr().err
    assert dry(f"{pair}={path}", options=("--any-language",)) == 0
    out = capsys.readouterr().out
    assert "look exchanged" in out and f"first: {rows[0][:40]!r} -> {rows[1][:40]!r}" in out


def test_header_lines(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "corpus.tsv"
    assert dry(f"en-de={write(path, ('English', 'German'), (EN, DE))}") == 0
    out = capsys.readouterr().out
    assert "en-de: a header line is left out: 'English', 'German'" in out and "dry run: 1 rows" in out
    assert dry(f"en-de={write(path, ('de', 'en'), (EN, DE))}") == 2
    assert "its header says 'de', then 'en'; exchange the columns" in capsys.readouterr().err
    assert dry(f"en-de={write(path, ('source', 'target'))}") == 2
    assert "has no row but a header line" in capsys.readouterr().err


# Prompts, limits and bases that an adapter names


def test_what_is_trained_is_what_translates(
    base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The chat template is kept with the adapter, and so is the name of the base; what was cut is told."""
    corpus, output = write(tmp_path / "corpus.tsv", (EN, DE), (EN + "!", DE + "!")), tmp_path / "out"
    assert train(base, corpus, output, "--prompt", "chat") == 0
    kept = PeftConfig.from_pretrained(str(output)).prompt
    assert kept is not None and "{source}" in kept and kept.endswith("<|im_start|>assistant\n{target}<|im_end|>")
    (tmp_path / "text").write_text("Tea?\n\nTea!\n", encoding="utf-8")
    seen: list[Any] = []
    real = PreTrainedTokenizerFast.__call__

    def spy(self: Any, text: Any = None, *args: Any, **kwargs: Any) -> Any:
        seen.append(text)
        return real(self, text, *args, **kwargs)

    monkeypatch.setattr(PreTrainedTokenizerFast, "__call__", spy)
    capsys.readouterr()
    start = ["translate", "--adapter", str(output), "--pair", "en-de", "--input", str(tmp_path / "text")]
    assert main([*start, "--device", "cpu", "--max-new-tokens", "1"]) == 0  # no --model
    found = capsys.readouterr()
    assert len(found.out.splitlines()) == 3
    assert "2 of 3 translations found no end and were cut: lines 1, 3; --max-new-tokens sets the limit" in found.err
    asked = next(text for text in seen if isinstance(text, str) and "Tea?" in text and len(text) > 4)
    assert asked.startswith("<|im_start|>user\n") and asked.endswith("<|im_start|>assistant\n")
    seen.clear()
    assert main([*start, "--device", "cpu", "--max-new-tokens", "1", "--prompt", "{source} ="]) == 0
    assert "Tea? =" in seen


def test_the_base_of_an_adapter(base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    moved, output = tmp_path / "moved", tmp_path / "out"
    shutil.copytree(base, moved)
    assert train(moved, write(tmp_path / "corpus.tsv", (EN, DE), (EN + "!", DE + "!")), output) == 0
    shutil.rmtree(moved)
    test = write(tmp_path / "test.tsv", (EN, DE))
    given = [
        "evaluate",
        "--adapter",
        str(output),
        "--data",
        f"en-de={test}",
        "--device",
        "cpu",
        "--max-new-tokens",
        "2",
    ]
    capsys.readouterr()
    assert main(given) == 2
    assert "the adapter was made on it, and it is not here; name the base model" in capsys.readouterr().err
    assert main([*given, "--model", str(base)]) == 0
    config = json.loads((output / "adapter_config.json").read_text(encoding="utf-8"))
    assert config["base_model_name_or_path"] == str(moved)


def test_prompts_that_are_none(base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    corpus = write(tmp_path / "corpus.tsv", (EN, DE))
    assert train(base, corpus, tmp_path / "out", "--prompt", "no field") == 2
    assert "must hold {source}" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
