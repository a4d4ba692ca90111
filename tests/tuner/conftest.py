"""Prints the table of behaviours when asked with `--behaviours`."""

from __future__ import annotations

import re
from collections import defaultdict
from typing import Any

_NAME = re.compile(r"test_behaviours\.py::test_behaviour\[(?P<kind>[^-]+)-(?P<architecture>[^-]+)-(?P<behaviour>.+)\]")


def pytest_terminal_summary(terminalreporter: Any, config: Any) -> None:
    if not config.getoption("--behaviours"):
        return
    cells: dict[str, dict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
    reasons: dict[str, set[str]] = defaultdict(set)  # behaviours by reason
    for outcome in ("passed", "failed", "skipped"):
        for report in terminalreporter.stats.get(outcome, []):
            if match := _NAME.search(report.nodeid):
                cells[match["behaviour"]][match["architecture"]].append(outcome)
                if outcome == "skipped":
                    reason = str(report.longrepr[2]).removeprefix("Skipped: not applicable: ")
                    reasons[reason].add(match["behaviour"])
    architectures = sorted({name for row in cells.values() for name in row})
    write = terminalreporter.write_line
    write("\n| behaviour | " + " | ".join(architectures) + " |")
    write("|---" * (len(architectures) + 1) + "|")
    for behaviour, row in cells.items():
        write(f"| {behaviour} | " + " | ".join(_cell(row[name]) for name in architectures) + " |")
    for reason, behaviours in reasons.items():
        named = "all behaviours" if len(behaviours) == len(cells) else ", ".join(sorted(behaviours))
        write(f"not applicable (n/a): {named}: {reason}")


def _cell(outcomes: list[str]) -> str:
    """Kinds of adapter that passed, of all; those that a behaviour does not apply to are counted apart."""
    passed, failed, skipped = (outcomes.count(outcome) for outcome in ("passed", "failed", "skipped"))
    text = f"{failed} FAILED of {passed + failed}" if failed else f"passed {passed}"
    return f"{text}, n/a {skipped}" if skipped else text
