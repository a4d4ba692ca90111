"""Counting calls: numbers of a package written for it, counted by hand, and the table."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest

from .helpers import SCRIPTS, run_script

OUTER = """
import torch
from . import inner

def run():
    torch.ones(2, 2) @ torch.ones(2, 2)
    for _ in range(3):
        inner.multiply()
"""
INNER = """
import torch

def multiply():
    torch.nn.Linear(2, 2)
    return chosen(torch.nn.functional.linear(torch.ones(2, 2), torch.ones(2, 2)))

def chosen(states):
    return states.index_select(0, torch.tensor([0]))
"""


def test_numbers_counted_by_hand(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`run` once, `multiply` and `chosen` three times each; the product is under two of them, indexing under three."""
    for name, text in {"__init__": "", "outer": OUTER, "inner": INNER}.items():
        (tmp_path / "counted_package").mkdir(exist_ok=True)
        (tmp_path / "counted_package" / f"{name}.py").write_text(text)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.syspath_prepend(str(SCRIPTS))
    outer = importlib.import_module("counted_package.outer")
    assert importlib.import_module("calls").measure(outer.run, tmp_path / "counted_package") == {
        "calls": 7,
        "functions": 3,
        "files": 2,
        "frames above a product": 2,
        "frames above indexing": 3,
        "modules made": 3,
    }


def test_the_table(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """LoRA runs the same FFNs without making a module; every method calls something and multiplies."""
    run_script(monkeypatch, "calls.py")
    _, _, *lines = capsys.readouterr().out.splitlines()
    rows = {name: [int(cell) for cell in cells] for name, *cells in (line.strip("| ").split(" | ") for line in lines)}
    assert len(rows) == 6 and rows["LoRA"][-1] == 0
    assert all(min(row[:-1]) > 0 for row in rows.values())
