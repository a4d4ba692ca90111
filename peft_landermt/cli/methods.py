"""The methods that `landermt train` knows, and the config that its options make of each."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any

from peft import LoraConfig, PeftConfig

from ..attention import ROLES
from ..errors import ConfigError
from ..lander import LanderConfig
from ..lander.layout import CHOICES
from ..lslo import GradualPruning, LsloConfig
from ..lslo.index import WORDS

METHODS: dict[str, tuple[str, ...]] = {
    "lander": (
        "neuron_map", "car", "inactive_neurons", "tune", "projections", "general_rank", "specific_rank",
        "attention_modules", "attention_layers", "attention_rank",
    ),
    "lslo": ("rank", "index", "prune"),
    "lora": ("rank",),
}  # fmt: skip
"""Options of every method, by the names of its arguments."""
LORA_RANK = 16


def add_method_options(parser: argparse.ArgumentParser) -> None:
    """Add `--method`, and the options of all methods; what is not given is None."""
    parser.add_argument(
        "--method",
        choices=METHODS,
        default="lander",
        help="lander: neurons of the pair's languages; lslo: low-rank factors of each language; lora: PEFT's LoRA on "
        "all linear layers, shared by all pairs (default: %(default)s)",
    )
    parser.add_argument("--neuron-map", help="from landermt detect; without it all neurons of all FFNs are tuned")
    fields = LanderConfig.__dataclass_fields__
    group = parser.add_argument_group("--method lander")
    for name in ("car", "inactive_neurons", "tune", "projections", "attention_layers"):
        flag = f"--{name.replace('_', '-')}"
        group.add_argument(flag, choices=CHOICES[name], help=f"(default: {fields[name].default})")
    for name in ("general_rank", "specific_rank"):
        flag, default = f"--{name.replace('_', '-')}", fields[name].default or 0
        group.add_argument(flag, type=int, help=f"0: whole rows (default: {default})")
    group.add_argument(
        "--attention-modules",
        nargs="+",
        choices=(*ROLES, "none"),
        metavar="ROLE",
        help="of q, k, v, o, shared by all pairs, or none (default: v o where the base's attention is known)",
    )
    group.add_argument("--attention-rank", type=int, help=f"(default: {fields['attention_rank'].default})")
    group = parser.add_argument_group("--method lslo and --method lora")
    default = LsloConfig.__dataclass_fields__["rank"].default
    group.add_argument(
        "--rank",
        nargs="+",
        metavar="R",
        help="one rank, or with lslo one of each language: en=2 de=2 wo=8 "
        f"(default: {default} with lslo, {LORA_RANK} with lora)",
    )
    group.add_argument("--index", choices=WORDS, help="lslo: whose factors a sample uses (default: as in the paper)")
    group.add_argument("--prune", type=float, metavar="RATIO", help="lslo: prune gradually to this share, such as 0.9")


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
