"""Unicode's composed form (NFC), in time that grows with the text alone."""

from __future__ import annotations

import re
import sys
import unicodedata
from functools import cache

MAX_MARKS = 30
"""Most combining marks in a row, as in Unicode's Stream-Safe Text Format (UAX #15); no language comes near it."""

MAX_DECOMPOSED = 4
"""Most characters that compose to one."""


def compose(text: str) -> str:
    """Put text into NFC, except where more than `MAX_MARKS` combining marks follow one another.

    NFC sorts such marks, which takes time that grows with the square of their number; they stay as they are.
    """
    if not has_too_many_marks(text):
        return unicodedata.normalize("NFC", text)
    pieces = _marks().split(text)
    return "".join(piece if place % 2 else unicodedata.normalize("NFC", piece) for place, piece in enumerate(pieces))


def has_too_many_marks(text: str) -> bool:
    """Tell whether more than `MAX_MARKS` combining marks follow one another."""
    return not text.isascii() and _SYMBOLS.search(text) is not None and _marks().search(text) is not None


# a much faster search than that for marks, which are all symbols to it
_SYMBOLS = re.compile(rf"[^\w\s]{{{MAX_MARKS + 1}}}")


@cache
def _marks() -> re.Pattern[str]:
    marks = [chr(code) for code in range(sys.maxunicode + 1) if unicodedata.combining(chr(code))]
    return re.compile(f"([{re.escape(''.join(marks))}]{{{MAX_MARKS + 1},}})")
