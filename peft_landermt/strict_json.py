"""JSON from files that anyone may have written: what our files do not need is refused."""

from __future__ import annotations

import json
from typing import Any

_DEEPEST = 16
"""Lists and objects within each other."""
_LARGEST = 2**63


def parse_json(text: str) -> Any:
    """Parse the value of a JSON text.

    Raises:
        ValueError: The text is no JSON; a key comes twice in an object; lists or objects lie too deep in each other; a
            number is NaN, infinite or has more than 63 bits; or a string has half of a surrogate pair.
    """
    try:
        value = json.loads(text, object_pairs_hook=_object)
    except RecursionError as error:
        raise ValueError(f"lists or objects lie more than {_DEEPEST} deep in each other") from error
    _check(value)
    return value


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a key comes twice in one object")
    return found


def _check(value: Any) -> None:
    level = [value]
    for _ in range(_DEEPEST + 1):
        inner: list[Any] = []
        for item in level:
            if isinstance(item, dict):
                inner += [*item.keys(), *item.values()]
            elif isinstance(item, list):
                inner += item
            elif isinstance(item, str):
                item.encode()  # UnicodeEncodeError, which is a ValueError, for half of a surrogate pair
            elif isinstance(item, (int, float)) and not -_LARGEST < item < _LARGEST:  # NaN neither
                raise ValueError("a number is NaN, infinite or too large")
        if not inner:
            return
        level = inner
    raise ValueError(f"lists or objects lie more than {_DEEPEST} deep in each other")
