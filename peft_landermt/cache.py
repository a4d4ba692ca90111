"""Where models are kept that this package converts once."""

from __future__ import annotations

import os
from pathlib import Path

DEMO_NAME = "gemma-3-270m"
"""Name of the demo base in the cache."""


def cache_folder() -> Path:
    """Tell where converted models are kept: `$LANDERMT_CACHE`, or `peft_landermt` in the user's cache folder."""
    if os.environ.get("LANDERMT_CACHE"):
        return Path(os.environ["LANDERMT_CACHE"])
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "peft_landermt"


def is_demo(name_or_path: str) -> bool:
    """Tell whether a model's path is that of the demo base in the cache."""
    return bool(name_or_path) and Path(name_or_path) == cache_folder() / DEMO_NAME
