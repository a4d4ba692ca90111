"""Sentences as they go into a model and come out of it: one line each."""

from __future__ import annotations


def one_space(text: str) -> str:
    """Write a source as it is translated: every run of whitespace, line ends included, is one space."""
    return " ".join(text.split())


def one_line(text: str) -> str:
    """Write a translation as `translate` gives it: line ends, and the whitespace around them, are one space."""
    return " ".join(stripped for line in text.splitlines() if (stripped := line.strip()))
