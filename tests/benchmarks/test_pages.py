"""Pages of results: their tables are what the lines of results say, and the log leaves no line out."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from statistics import mean, stdev
from types import ModuleType

import pytest

from .helpers import SCRIPTS

DOCS = SCRIPTS.parent / "docs"
FILES = ("finetune", "finetune_smollm2", "paper", "programme", "programme_gpu", "rates")
"""Of runs, one a line."""


@pytest.fixture
def pages(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(SCRIPTS))
    return importlib.import_module("pages")


@pytest.mark.parametrize("name", ["results.md", "experiments.md"])
def test_tables_are_those_of_the_results(pages: ModuleType, name: str) -> None:
    """`python benchmarks/pages.py` makes them so."""
    text = (DOCS / name).read_text(encoding="utf-8")
    assert text.count("<!-- end -->") == len(pages.BLOCK.findall(text)) > 0
    assert pages.fill(text) == text


def lines(name: str) -> list[dict]:
    return [json.loads(line) for line in (SCRIPTS / "results" / f"{name}.jsonl").read_text("utf-8").splitlines()]


@pytest.mark.parametrize("name", FILES)
def test_the_log_leaves_no_run_out(pages: ModuleType, name: str) -> None:
    text = (DOCS / "experiments.md").read_text(encoding="utf-8")
    options = [options for _, _, file, options, _ in pages.BLOCK.findall(text) if file == f"{name}.jsonl"]
    wanted = [dict(option.split("=", 1) for option in each.split()) for each in options]
    for line in pages.read_lines(SCRIPTS / "results" / f"{name}.jsonl"):
        assert any(pages.matches(line, {k: v for k, v in each.items() if k != "measure"}) for each in wanted), line


def test_no_file_of_runs_is_left_out() -> None:
    found = {path.stem for path in (SCRIPTS / "results").glob("*.jsonl") if "method" in lines(path.stem)[0]}
    assert found == set(FILES)


def test_a_row_of_the_main_table(pages: ModuleType) -> None:
    """Three seeds of LoRA on v and o, read from the lines directly; that of seed 0 went on for three epochs."""
    chosen = [
        line["by_epoch"][0]["development_loss"]
        for line in lines("programme")
        if line["options"] == {"target_modules": ["v_proj", "o_proj"]}
    ]
    table = pages.main_table(SCRIPTS / "results" / "paper.jsonl", {})
    row = next(row for row in table.splitlines() if "v and o |" in row)
    assert row.split(" | ")[1] == f"{mean(chosen):.4f} ± {stdev(chosen):.4f} ({len(chosen)})"


def test_a_stale_page_is_told(pages: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in pages.PAGES:
        text = (DOCS / name).read_text(encoding="utf-8")
        (tmp_path / name).write_text(text.replace("13.55 ±", "15.55 ±"), encoding="utf-8")
    (tmp_path / "figures").mkdir()
    monkeypatch.setattr(pages, "DOCS", tmp_path)
    monkeypatch.setattr("sys.argv", ["pages.py", "--check"])
    with pytest.raises(SystemExit, match=r"results\.md"):
        pages.main()
    monkeypatch.setattr("sys.argv", ["pages.py"])
    pages.main()
    for name in pages.PAGES:
        assert (tmp_path / name).read_text(encoding="utf-8") == (DOCS / name).read_text(encoding="utf-8")
    drawn = (tmp_path / "figures" / "loss_by_size.svg").read_text(encoding="utf-8")
    assert drawn.count('id="PathCollection_') == 2 * len(pages.KINDS_OF_POINTS), "in the plot and in the legend"
