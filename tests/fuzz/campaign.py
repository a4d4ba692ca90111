"""How long the suites of this folder run, and how what they tried ended.

Short and always the same by default. With `LANDERMT_FUZZ_MINUTES=60`, which `make fuzz` sets, every test goes on with
other inputs for its share of that time, and the counts are printed.
"""

from __future__ import annotations

import os
import traceback
from collections import Counter
from collections.abc import Callable
from typing import Any

from hypothesis import HealthCheck, Phase, settings

from peft_landermt.errors import LanderError

MINUTES = float(os.environ.get("LANDERMT_FUZZ_MINUTES", "0"))
OUTCOMES: Counter[str] = Counter()
"""How many attempts ended in which way, by road and outcome."""

settings.register_profile(
    "short",
    max_examples=8,
    deadline=None,
    derandomize=True,
    database=None,
    phases=[Phase.explicit, Phase.generate],  # shrinking takes minutes; what a failure prints is small as it is
    print_blob=True,
    suppress_health_check=list(HealthCheck),
)
settings.register_profile("fuzz", settings.get_profile("short"), max_examples=100, derandomize=False)
settings.load_profile("fuzz" if MINUTES else "short")


def at_most(examples: int) -> settings:
    """Settings for a test of many, or one whose examples are slow: so many by default, and more in a campaign."""
    return settings(max_examples=examples * (20 if MINUTES else 1))


def attempt(road: str, load: Callable[[], Any], others: tuple[str, ...] = ()) -> Any:
    """What `load` returns, or the error that it raised; any but one of this package fails the test. Both are counted.

    Args:
        road: What the counts are listed under.
        load: What is tried.
        others: Packages that read a file or state dict before this one does, and may raise errors of their own.
    """
    try:
        result = load()
    except LanderError as error:
        assert error.remedy and str(error).isprintable() and len(str(error)) < 1000, error
        result, outcome = error, f"refused, {type(error).__name__}"
    except Exception as error:
        files = [frame.filename for frame in traceback.extract_tb(error.__traceback__)]
        reader = next((name for file in files[::-1] for name in ("peft_landermt", *others) if f"/{name}/" in file), "")
        if reader not in others:
            raise
        result, outcome = error, f"refused, {type(error).__name__} of {reader}"
    else:
        outcome = "accepted"
    OUTCOMES[f"{road}: {outcome}"] += 1
    return result
