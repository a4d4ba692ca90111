"""Progress bars, in a terminal and in a log."""

from __future__ import annotations

import io
import sys
import time

import pytest

from peft_landermt.progress import progress_bar


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_log_gets_the_first_line_and_the_last(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = io.StringIO()
    monkeypatch.setattr(sys, "stderr", stream)
    with progress_bar(200, "Working", shown=True) as bar:
        for _ in range(200):
            time.sleep(0.002)  # longer than what a terminal's bar waits between two lines, all in all
            bar.update()
    drawn = [line for line in stream.getvalue().replace("\n", "\r").split("\r") if "Working" in line]
    assert len(drawn) == 2 and "100%" in drawn[-1] and "200/200" in drawn[-1]


def test_a_terminal_gets_more(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = Terminal()
    monkeypatch.setattr(sys, "stderr", stream)
    with progress_bar(200, "Working", shown=True) as bar:
        for _ in range(200):
            time.sleep(0.002)
            bar.update()
    assert stream.getvalue().count("Working") > 3


def test_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = io.StringIO()
    monkeypatch.setattr(sys, "stderr", stream)
    with progress_bar(3, "Working", shown=False) as bar:
        bar.update(3)
    assert stream.getvalue() == ""
