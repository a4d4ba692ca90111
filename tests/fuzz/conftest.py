"""Repeats the tests of this folder for their share of `LANDERMT_FUZZ_MINUTES`, and prints the counts."""

from __future__ import annotations

import os
import time
from collections import Counter
from typing import Any

import pytest

from .campaign import MINUTES, OUTCOMES


@pytest.hookimpl(hookwrapper=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> Any:
    workers = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
    end = time.monotonic() + 60 * MINUTES * workers / max(len(pyfuncitem.session.items), 1)
    OUTCOMES.clear()
    outcome = yield
    arguments = {name: pyfuncitem.funcargs[name] for name in pyfuncitem._fixtureinfo.argnames}
    while MINUTES and not outcome.excinfo and time.monotonic() < end:
        try:
            pyfuncitem.obj(**arguments)
        except BaseException as error:
            outcome.force_exception(error)
            break
    pyfuncitem.user_properties += list(OUTCOMES.items())


def pytest_terminal_summary(terminalreporter: Any) -> None:
    if MINUTES:
        reports = [*terminalreporter.stats.get("passed", ()), *terminalreporter.stats.get("failed", ())]
        counts: Counter[str] = Counter()
        for report in reports:
            counts.update(dict(report.user_properties))
        for outcome, count in sorted(counts.items()):
            terminalreporter.write_line(f"{count:8,}  {outcome}")
        terminalreporter.write_line(f"{counts.total():8,}  in all")
