"""Commands and files that pages name."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGES = ["README.md", "CHANGELOG.md", "Makefile", *(f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md"))]
PAGES += [f"benchmarks/{path.name}" for path in (ROOT / "benchmarks").glob("*.py")]


def text(page: str) -> str:
    return (ROOT / page).read_text(encoding="utf-8")


@pytest.mark.parametrize("page", [page for page in PAGES if "benchmarks/" in text(page)])
def test_what_a_page_names_is_there(page: str) -> None:
    """Scripts and results; and every script has the options that its commands give."""
    for name in re.findall(r"benchmarks/[\w/]+\.\w+", text(page)):
        assert (ROOT / name).exists(), name
    for script, options in re.findall(r"python (benchmarks/\w+\.py)([^\n`#]*)", text(page)):
        known = text(script) + text("benchmarks/run.py")  # the report has the runner's too
        for option in re.findall(r"--[a-z][a-z-]*", options):
            assert f'"{option}"' in known, f"{script} {option}"
