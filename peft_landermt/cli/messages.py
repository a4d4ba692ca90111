"""What a command shows of errors and warnings: one line each, in the words of the command line."""

from __future__ import annotations

import logging
import re
import sys
import warnings
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from typing import Any

from ..errors import LanderError
from ..escaping import printable

_TALKATIVE = ("torchao", "torch.utils._pytree", "bitsandbytes")
"""Loggers that warn on import of what concerns no user of a command."""

_NAME = re.compile(r"\b[a-z]+(?:_[a-z]+)+\b")
_OTHER_FLAGS = {"language_pairs": "--pairs", "language_pair": "--pair"}
"""Flags that are not called as the library calls the same option."""


def in_words_of(flags: Collection[str], error: Exception) -> str:
    """Tell an error on one line, with flags in place of the library's names for the same options.

    Args:
        flags: Of the command.
        error: What went wrong.
    """

    def flag(name: str) -> str:
        candidates = (name, f"--{name.replace('_', '-')}", _OTHER_FLAGS.get(name, name))
        return next((each for each in candidates if each in flags), name)

    text = str(error)
    if isinstance(error, LanderError):
        given = str(LanderError(error.field, error.value, ""))
        remedy = _NAME.sub(lambda match: flag(match[0]), text.removeprefix(given))
        fields = ", ".join(flag(name) for name in error.field.split(", "))
        text = given.replace(error.field, fields, 1) + remedy
    return " ".join(text.split())


@contextmanager
def our_messages_only(command: str) -> Iterator[None]:
    """Show warnings of this package as `landermt COMMAND: text`, and no others, inside."""
    for name in _TALKATIVE:
        logging.getLogger(name).setLevel(logging.ERROR)

    def show(message: Warning | str, *_: Any, **__: Any) -> None:
        frame: Any = sys._getframe(1)
        while frame is not None and frame.f_globals.get("__name__") == "warnings":
            frame = frame.f_back
        if frame is not None and str(frame.f_globals.get("__name__")).partition(".")[0] == "peft_landermt":
            print(f"landermt {command}: {printable(str(message))}", file=sys.stderr)

    before = warnings.showwarning
    warnings.showwarning = show
    try:
        yield
    finally:
        warnings.showwarning = before
