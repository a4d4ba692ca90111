"""Corpora that are not what their pair says: the same rows for two pairs, exchanged columns, header lines.

Sentences are Article 1 of the Universal Declaration of Human Rights (OHCHR's translations).
"""

from __future__ import annotations

import gzip
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from peft_landermt.cli import main

from ..conftest import SENTENCES
from ..translation.test_limits import HUMAN_RIGHTS

ROWS = list(zip(SENTENCES["en"], SENTENCES["de"], strict=True))


def write_tsv(path: Path, rows: list[tuple[str, str]]) -> str:
    path.write_text("".join(f"{source}\t{target}\n" for source, target in rows), encoding="utf-8")
    return str(path)


def same_path(folder: Path) -> list[str]:
    path = write_tsv(folder / "corpus.tsv", ROWS)
    return [f"en-de={path}", f"de-en={path}"]


def another_writing_of_the_path(folder: Path) -> list[str]:
    path = write_tsv(folder / "corpus.tsv", ROWS)
    return [f"en-de={path}", f"deu-eng={folder / '..' / folder.name / 'corpus.tsv'}"]


def link(folder: Path) -> list[str]:
    path = write_tsv(folder / "corpus.tsv", ROWS)
    (folder / "link.tsv").symlink_to(path)
    return [f"en-de={path}", f"de-en={folder / 'link.tsv'}"]


def compressed_copy(folder: Path) -> list[str]:
    path = write_tsv(folder / "corpus.tsv", ROWS)
    with open(path, "rb") as file, gzip.open(f"{path}.gz", "wb") as copied:
        shutil.copyfileobj(file, copied)
    return [f"en-de={path}", f"de-en={path}.gz"]


def json_lines(folder: Path) -> list[str]:
    rows = "".join(json.dumps({"source": source, "target": target}) + "\n" for source, target in ROWS)
    (folder / "corpus.jsonl").write_text(rows, encoding="utf-8")
    return [f"en-de={folder / 'corpus.jsonl'}", f"de-en={folder / 'corpus.jsonl'}"]


def for_another_target(folder: Path) -> list[str]:
    path = write_tsv(folder / "corpus.tsv", ROWS)
    return [f"en-de={path}", f"en-fr={path}"]


def exchanged(folder: Path) -> list[str]:
    path = write_tsv(folder / "corpus.tsv", [(HUMAN_RIGHTS["ru"], HUMAN_RIGHTS["en"])] * 2)
    return [f"en-ru={path}"]


def exchanged_header(folder: Path) -> list[str]:
    return [f"en-de={write_tsv(folder / 'corpus.tsv', [('German', 'English'), *ROWS])}"]


def dry(data: list[str], folder: Path, *options: str) -> list[str]:
    return ["train", "--data", *data, "--output", str(folder / "out"), "--dry-run", *options]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        *((make, "have the same sources and targets") for make in (same_path, another_writing_of_the_path, link)),
        *((make, "have the same sources and targets") for make in (compressed_copy, json_lines, for_another_target)),
        (exchanged, "look exchanged"),
        (exchanged_header, "its header says 'German', then 'English'"),
    ],
)
def test_what_is_exchanged_is_refused(
    make: Callable[[Path], list[str]], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = make(tmp_path)
    assert main(dry(data, tmp_path)) != 0
    assert message in capsys.readouterr().err
    assert main(dry(data, tmp_path, "--any-language")) == 0


@pytest.mark.parametrize("header", [("source", "target"), ("English", "German"), ("sentence_eng_Latn", "text_de")])
def test_a_header_is_left_out(header: tuple[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(dry([f"en-de={write_tsv(tmp_path / 'corpus.tsv', [header, *ROWS])}"], tmp_path)) == 0
    out = capsys.readouterr().out
    assert f"a header line is left out: {header[0]!r}, {header[1]!r}" in out
    assert f"dry run: {len(ROWS)} rows" in out and f"first: {ROWS[0][0]!r} -> {ROWS[0][1]!r}" in out
    assert main(dry([f"en-de={write_tsv(tmp_path / 'corpus.tsv', [header])}"], tmp_path)) != 0
