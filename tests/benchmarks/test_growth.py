"""The benchmark of adapters that grow, on a tiny model, and its tables."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from .helpers import run_script

ROWS = 4
FIRST = ["en-de", "de-en", "en-fr", "fr-en"]


def lines_of(folder: Path, *arms: str, bleu: int = 1, name: str = "growth") -> list[dict[str, Any]]:
    """What the arms' runs write; nothing is done twice."""
    results = folder / f"{name}.jsonl"
    options = ["--data", str(folder / "data"), "--model", str(folder / "base"), "--results", str(results)]
    with pytest.MonkeyPatch.context() as monkeypatch:
        for _ in range(2):
            sizes = [
                "--rows",
                str(ROWS),
                "--rates",
                "1e-2",
                "--orders",
                "zh ar",
                "--bleu",
                str(bleu),
                "--longest",
                "100",
            ]
            run_script(monkeypatch, "growth.py", *options, *sizes, "--arms", *arms)
    lines = [json.loads(line) for line in results.read_text(encoding="utf-8").splitlines()]
    return [line for line in lines if line["arm"] in arms]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arm", "old_stay"),
    [
        ("grown r=4", True),
        ("grown r=4, all projections at first", True),
        ("grown r=4, all linear layers at first, from the last", True),
        ("grown r=4, all linear layers at first, from general, then from the last", True),
        ("LoRA, copied, 4 of 16 components", True),
        ("LoRA, stacked r=16", True),
        ("LoRA, stacked r=4, from the last", True),
        ("LoRA, one a phase", True),
        ("LoRA, trained on, 5% replay", False),
    ],
)
def test_phases(folder: Path, arm: str, old_stay: bool) -> None:
    """Three phases and an end; where old pairs have their own weights, their losses stay to the last digit."""
    *phases, end = lines_of(folder, arm)
    assert [line["phase"] for line in phases] == [0, 1, 2] and end["end"]
    assert phases[0]["pairs"] == FIRST and phases[2]["pairs"] == ["en-ar", "ar-en"]
    for phase in phases[1:]:
        same = [phase["losses"][pair] == phases[0]["losses"][pair] for pair in FIRST]
        assert all(same) if old_stay else not any(same)
    if arm.endswith("from the last"):
        assert phases[2]["learning_rate"] == pytest.approx(0.4 * phases[1]["learning_rate"])
    if "copied" in arm:
        assert phases[1]["trainable_parameters"] == phases[0]["trainable_parameters"] / 4
    assert end["losses_composed"].keys() == end["bleu_pivoted"].keys() == {"de-fr", "fr-de", "de-zh", "zh-de"}


@pytest.mark.slow
def test_arms_in_one_process(folder: Path) -> None:
    """Arms that take over a first phase give the losses that they give alone."""
    arms = ["LoRA, stacked r=16", "LoRA, trained on, 5% replay", "LoRA, one a phase"]
    together = lines_of(folder, *arms, name="together")
    alone = [line for arm in arms for line in lines_of(folder, arm)]
    assert len(together) == len(alone) == 12
    for one, other in zip(together, alone, strict=True):
        names = ("arm", "phase", "losses", "trainable_parameters", "losses_composed", "bleu_direct")
        assert all(one.get(name) == other.get(name) for name in names)


@pytest.mark.slow
def test_tables(folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """A line for each arm, with what the results hold."""
    *phases, end = lines_of(folder, "grown r=4")
    lines_of(folder, "LoRA, joint", bleu=0)
    capsys.readouterr()
    run_script(monkeypatch, "growth_report.py", "--results", str(folder / "growth.jsonl"))
    printed = capsys.readouterr().out
    row = next(line for line in printed.splitlines() if line.startswith("| grown r=4 | 0.01 | 0 |"))
    zh = sum(phases[1]["losses"][pair] for pair in ("en-zh", "zh-en")) / 2
    assert f"| {zh:.4f} | {zh:.4f} |" in row, "new, and at the end"
    composed = sum(end["losses_composed"].values()) / 4
    assert row.endswith(f"| {composed:.4f} |")
    assert "de-fr, through English" in printed and "| LoRA, joint |" not in printed, "of one phase"
