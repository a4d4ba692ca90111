"""The config that the options of `landermt train` make of each method."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any

from peft import LoraConfig, PeftConfig

from ..errors import ConfigError
from ..lander import LanderConfig
from ..lslo import GradualPruning, LsloConfig
from .method_options import LORA_RANK, METHODS


def config_of(options: argparse.Namespace, pairs: Sequence[str]) -> PeftConfig:
    """Make the config of the chosen method.

    Raises:
        ConfigError: An option is wrong, or belongs to another method.
    """
    for name in dict.fromkeys(name for names in METHODS.values() for name in names):
        if getattr(options, name) is not None and name not in METHODS[options.method]:
            owners = " and ".join(method for method, names in METHODS.items() if name in names)
            problem = f"is an option of --method {owners}, not of {options.method}; leave it out."
            raise ConfigError(f"--{name.replace('_', '-')}", getattr(options, name), problem)
    given = {name: getattr(options, name) for name in METHODS[options.method] if getattr(options, name) is not None}
    if options.method == "lander":
        for name in ("general_rank", "specific_rank"):
            if given.get(name, 0) < 0:
                problem = "must be positive, or 0 for whole rows."
                raise ConfigError(f"--{name.replace('_', '-')}", given[name], problem)
            if name in given:
                given[name] = given[name] or None
        if "none" in (roles := given.get("attention_modules", ())):
            if len(roles) > 1:
                raise ConfigError("--attention-modules", roles, "names projections and none of them.")
            given["attention_modules"] = None
        return LanderConfig(language_pairs=list(pairs), **given)
    rank = _rank(given.get("rank"))
    if options.method == "lora":
        rank = LORA_RANK if rank is None else rank
        if not isinstance(rank, int) or rank < 1:
            raise ConfigError("--rank", options.rank, "must be one positive integer with --method lora.")
        return LoraConfig(r=rank, lora_alpha=2 * rank, target_modules="all-linear")
    chosen: dict[str, Any] = {"index": options.index} if rank is None else {"index": options.index, "rank": rank}
    return LsloConfig(language_pairs=list(pairs), **chosen)


def callbacks_of(options: argparse.Namespace) -> list[Any]:
    """Make what the chosen method adds to the trainer.

    Raises:
        ConfigError: The ratio of pruning is wrong.
    """
    return [GradualPruning(options.prune)] if options.prune is not None else []


def _rank(given: Sequence[str] | None) -> int | dict[str, int] | None:
    """Read `8`, or `en=2 de=8`."""
    if given is None:
        return None
    try:
        if len(given) == 1 and "=" not in given[0]:
            return int(given[0])
        return {language: int(rank) for language, rank in (each.split("=") for each in given)}
    except ValueError as error:
        problem = "must be one integer, or one for each language, such as en=2 de=2 wo=8."
        raise ConfigError("--rank", " ".join(given), problem) from error
