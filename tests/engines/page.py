"""What `docs/elsewhere.md` says, taken from the page as it stands."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

PAGE = "docs/elsewhere.md"
HEADINGS = ("Transformers", "PEFT", "CTranslate2", "llama.cpp")
"""Sections that the tests run, each with one block of Python."""


def sections() -> dict[str, str]:
    """Text of the page by heading; what comes before the first is under an empty one."""
    text = (Path(__file__).parents[2] / PAGE).read_text(encoding="utf-8")
    first, *others = re.split(r"^## (.*)$", text, flags=re.M)
    return {"": first, **dict(zip(others[::2], others[1::2], strict=True))}


def script(heading: str) -> str:
    """The one block of Python in a section."""
    (found,) = re.findall(r"^```python\n(.*?)^```", sections()[heading], flags=re.M | re.S)
    return found


def commands(heading: str) -> list[list[str]]:
    """Commands of a section, in words, without those that install."""
    found = re.findall(r"^```\n(.*?)^```", sections()[heading], flags=re.M | re.S)
    lines = [shlex.split(line) for block in found for line in block.splitlines()]
    return [words for words in lines if words[0] != "pip"]
