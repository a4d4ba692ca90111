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
FILES = (
    "deciding",
    "deciding_cpu",
    "finetune",
    "finetune_smollm2",
    "lslo",
    "paper",
    "programme",
    "programme_gpu",
    "rates",
)
"""Of runs, one a line."""


@pytest.fixture
def pages(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(SCRIPTS))
    return importlib.import_module("pages")


@pytest.mark.parametrize("name", ["results.md", "experiments.md", "performance.md"])
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
    """All seeds of LoRA on v and o, read from the lines directly; that of seed 0 went on for three epochs."""
    chosen = [
        line["by_epoch"][0]["development_loss"]
        for line in lines("programme")
        if line["options"] == {"target_modules": ["v_proj", "o_proj"]}
    ]
    table = pages.main_table(SCRIPTS / "results" / "paper.jsonl", {})
    row = next(row for row in table.splitlines() if "attention v and o |" in row)
    assert row.split(" | ")[1] == f"{mean(chosen):.4f} ± {stdev(chosen):.4f} ({len(chosen)})"


def test_a_difference_of_choices_and_its_interval(pages: ModuleType) -> None:
    """Neurons of eq. 5 beside random ones, over three seeds, read from the lines directly."""
    losses: dict[str, dict[int, float]] = {"": {}, "random neurons": {}}
    for line in lines("deciding"):
        plain = line["rows"] == 60 and line["detection"].get("num_layers") == 18 and "tune" not in line["options"]
        if (
            plain
            and line["learning_rate"] == 5e-4
            and line["control"] in losses
            and line["options"]["specific_rank"] == 4
        ):
            losses[line["control"]][line["seed"]] = line["development_loss"]
    gains = [losses[""][seed] - losses["random neurons"][seed] for seed in range(3)]
    half = 4.302653 * stdev(gains) / 3**0.5
    table = pages.KINDS["choices"](SCRIPTS / "results" / "deciding.jsonl", {"rows": "60"})
    (row,) = (row for row in table.splitlines() if row.startswith("| neurons: those of eq. 5 | random"))
    expected = f"{mean(gains):+.4f} ({mean(gains) - half:+.4f} to {mean(gains) + half:+.4f})"
    assert row.split(" | ")[-1].removesuffix(" |") == expected


def test_the_defaults_beside_lora(pages: ModuleType) -> None:
    """With 250 rows, beside LoRA on all linear layers at the better of its rates, from the lines directly."""
    losses: dict[tuple[str, float], dict[int, float]] = {}
    for line in lines("deciding"):
        if line["rows"] == 250 and line["trainable_parameters"] in (1_656_072, 3_796_992):
            losses.setdefault((line["method"], line["learning_rate"]), {})[line["seed"]] = line["development_loss"]
    own, other = (
        min((found for (name, _), found in losses.items() if name == method), key=lambda found: mean(found.values()))
        for method in ("lander", "lora")
    )
    gains = [own[seed] - other[seed] for seed in range(3)]
    half = 4.303 * stdev(gains) / 3**0.5
    table = pages.KINDS["beside"](SCRIPTS / "results" / "deciding.jsonl", {})
    (row,) = (
        row for row in table.splitlines() if row.startswith("| 6 × 250 | the defaults | LoRA, all linear layers | 3 |")
    )
    assert f"{mean(gains):+.4f} ({mean(gains) - half:+.4f} to {mean(gains) + half:+.4f})" in row


def test_means_of_adapters_that_grow(pages: ModuleType) -> None:
    """Arabic, when it was new, in each of two orders over two seeds, read from the lines directly."""
    new: dict[str, list[float]] = {"ar zh": [], "zh ar": []}
    for line in lines("growth"):
        if line["model"] == "gemma-3-270m" and line["arm"] == "grown r=4" and line.get("pairs") == ["en-ar", "ar-en"]:
            new[line["order"]].append(mean(line["losses"][pair] for pair in ("en-ar", "ar-en")))
    table = pages.growth(SCRIPTS / "results" / "growth.jsonl", {"model": "gemma-3-270m", "of": "means"})
    (row,) = (row for row in table.splitlines() if row.startswith("| grown r=4 |"))
    shown = [f"{mean(found):.4f} ± {stdev(found):.4f} (2)" for found in new.values()]
    assert row.removesuffix(" |").split(" | ")[-2:] == shown, "first, and after Chinese"


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
