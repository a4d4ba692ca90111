"""`--config FILE`: options of a subcommand from a YAML file."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from ..errors import ConfigError


def expand(arguments: Sequence[str], subparsers: Mapping[str, argparse.ArgumentParser]) -> list[str]:
    """Put the options of a command line's `--config` file first, so that what it says itself wins.

    Args:
        arguments: The command line.
        subparsers: The parser of every subcommand.

    Raises:
        ConfigError: The file is missing, no YAML, or holds something that is no option.
    """
    finder = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    finder.add_argument("--config", nargs="?")  # without a value, which the subcommand's own parser refuses
    path = finder.parse_known_args(arguments)[0].config
    command = next((index for index, argument in enumerate(arguments) if not argument.startswith("-")), None)
    if path is None or command is None:
        return list(arguments)
    known = subparsers[arguments[command]]._option_string_actions if arguments[command] in subparsers else {}
    return [*arguments[: command + 1], *_options(path, known), *arguments[command + 1 :]]


def _options(path: str, known: Mapping[str, argparse.Action]) -> Iterator[str]:
    try:
        values = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError("--config", path, f"cannot be read ({error.strerror}).") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError("--config", path, f"is no YAML ({' '.join(str(error).split())}).") from error
    if not isinstance(values, dict) or not all(isinstance(name, str) for name in values):
        raise ConfigError("--config", path, "expected one option a line, such as batch-size: 8.")
    for name, value in values.items():
        flag = f"--{name.replace('_', '-')}"
        opposite = f"--no-{flag[2:]}"
        if isinstance(value, bool) and opposite in known:
            if not value:
                yield opposite
            continue
        if value is None or value is False:
            if flag not in known:
                raise ConfigError(name, value, f"{flag} is no option of this command.")
            if value is False and known[flag].nargs != 0:
                raise ConfigError(name, value, f"{flag} is no switch; give it a value, or leave it out.")
            continue
        if isinstance(value, dict) and not all(isinstance(key, str) for key in value):
            key = next(key for key in value if not isinstance(key, str))
            raise ConfigError(name, key, "YAML reads no as false, and digits as numbers; quote the key, such as 'no'.")
        yield flag
        if value is not True:
            yield from _words(value)


def _words(value: Any) -> list[str]:
    """Write a value as it would be typed: lists word by word, mappings as KEY=VALUE, what is nested as JSON."""
    if isinstance(value, list):
        return [str(item) for item in value]
    if isinstance(value, dict):
        if all(isinstance(item, str) for item in value.values()):
            return [f"{key}={item}" for key, item in value.items()]
        return [json.dumps(value)]
    return [str(value)]
