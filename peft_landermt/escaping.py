"""Names that come from files, made fit to be shown on terminals and in Markdown, and to be published."""

from __future__ import annotations

import os
import re

from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id

_MARKUP = re.compile(r"[^\w ,./+%?'-]|_(?![^\W_])|(?<![^\W_])_|(?<=www)\.", re.IGNORECASE)
"""What Markdown may take for more than a letter; of `_` none within a word; the dot of `www.`, which makes a link."""


def printable(text: str) -> str:
    """Show `text` on one line, with what a terminal would obey or hide in place of showing it written out: `\\x1b`,
    `\\n`, `\\u202e`."""
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)


def markdown(text: str) -> str:
    """Write `text` so that Markdown and HTML show it letter by letter, in a heading, a paragraph or a cell of a
    table."""
    return _MARKUP.sub(lambda match: f"&#{ord(match[0])};", printable(text))


def code_span(text: str) -> str:
    """Write `text` as code in a paragraph of Markdown; not for tables, whose cells a `|` ends."""
    shown = printable(text)
    fence = "`" * (1 + max(map(len, re.findall("`+", shown)), default=0))
    padding = " " if "`" in (shown[:1], shown[-1:]) else ""
    return f"{fence}{padding}{shown}{padding}{fence}"


def is_hub_id(name: str) -> bool:
    """Tell whether a model's name is one on the Hub, `organisation/name` or `name`, and no folder here."""
    try:
        validate_repo_id(name)
    except HFValidationError:
        return False
    return name.isascii() and not os.path.isdir(name)


def last_part(name_or_path: str) -> str:
    """Tell what follows the last slash: of a folder its own name, which tells nothing of a machine and its owner."""
    return re.split(r"[\\/]", name_or_path.rstrip("\\/"))[-1]


def published_name(name_or_path: str) -> str:
    """Return a model's name on the Hub, or the last part of the path that it lies at."""
    return name_or_path if is_hub_id(name_or_path) else last_part(name_or_path)
