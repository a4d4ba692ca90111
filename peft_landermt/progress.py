"""Progress bars that are readable in log files too."""

from __future__ import annotations

import sys
from typing import Any

from tqdm.auto import tqdm

SECONDS_IN_A_LOG = 30.0


def progress_bar(total: int, description: str, shown: bool) -> Any:
    """Make a bar; where standard error is no terminal, a line at most every 30 seconds.

    Args:
        total: Number of steps.
        description: What is done.
        shown: Whether to show anything.
    """
    in_a_log = not sys.stderr.isatty()
    return tqdm(
        total=total,
        desc=description,
        disable=not shown,
        mininterval=SECONDS_IN_A_LOG if in_a_log else 0.1,
        miniters=1 if in_a_log else None,  # tqdm's guess of how often to look would make the last lines come late
    )
