"""Running the benchmarks' scripts."""

from __future__ import annotations

import gzip
import runpy
import sys
from collections.abc import Iterable
from pathlib import Path

import pytest

SCRIPTS = Path(__file__).parents[2] / "benchmarks"


def run_script(monkeypatch: pytest.MonkeyPatch, script: str, *arguments: str) -> None:
    """Run a script in this process, as the command line would."""
    monkeypatch.setattr(sys, "argv", [script, *arguments])
    monkeypatch.syspath_prepend(str((SCRIPTS / script).parent))
    runpy.run_path(str(SCRIPTS / script), run_name="__main__")


def write_packed(path: Path, lines: Iterable[str]) -> None:
    """Lines as a file that benchmarks read."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with gzip.open(path, "wt", encoding="utf-8") as file:
        file.writelines(f"{line}\n" for line in lines)
