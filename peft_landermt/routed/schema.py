"""Checks of a config's fields against the types that its dataclass declares."""

from __future__ import annotations

import functools
import math
import os
import types
from collections.abc import Mapping
from dataclasses import fields
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from ..errors import ConfigError


def check_fields(config: Any) -> None:
    """Check that every field of a dataclass has a value of its declared type.

    Lists may be given as tuples or sets. A field may say in its metadata what it "must be". Fields that PEFT fills or
    checks itself (`peft_type`, `task_type`) are left to it.

    Raises:
        ConfigError: One has another type.
    """
    hints = get_type_hints(type(config))
    for item in fields(config):
        hint, value = hints[item.name], getattr(config, item.name)
        if item.name not in ("peft_type", "task_type") and not is_of(hint, value):
            wanted = item.metadata.get("must be", " or ".join(_described(hint)))
            raise ConfigError(item.name, value, f"must be {wanted}.")


def is_of(hint: Any, value: Any) -> bool:
    """Tell whether a value is of a type: a class, a union, a literal, or a list, set or mapping of such."""
    origin, inside = _parts(hint)
    if hint is Any:
        return True
    if origin in (Union, types.UnionType):
        return any(is_of(each, value) for each in inside)
    if origin is Literal:
        return any(type(value) is type(each) and value == each for each in inside)
    if origin in (list, set):
        return isinstance(value, (list, tuple, set)) and all(is_of(inside[0], each) for each in value)
    if origin is dict:
        return isinstance(value, Mapping) and all(
            is_of(inside[0], key) and is_of(inside[1], each) for key, each in value.items()
        )
    if hint is os.PathLike or origin is os.PathLike:
        return isinstance(value, os.PathLike)
    if hint is float:
        return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    return isinstance(value, hint) and not (hint is int and isinstance(value, bool))


@functools.cache
def _parts(hint: Any) -> tuple[Any, tuple[Any, ...]]:
    return get_origin(hint), get_args(hint)


def _described(hint: Any) -> list[str]:
    """The types that a hint allows, in words, each once."""
    origin, inside = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        return list(dict.fromkeys(word for each in inside for word in _described(each)))
    if origin is Literal:
        return [f"one of {', '.join(map(str, inside))}"]
    if origin in (list, set):
        return [f"a list of {_plural(inside[0])}"]
    words = {
        bool: "true or false",
        int: "an integer",
        float: "a number",
        str: "a string",
        dict: "a mapping",
        type(None): "None",
    }
    return [words.get(origin or hint, getattr(hint, "__name__", str(hint)))]


def _plural(hint: Any) -> str:
    return {str: "strings", int: "integers"}.get(hint, "values")
