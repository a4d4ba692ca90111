"""The methods that `landermt train` knows, and their options."""

from __future__ import annotations

import argparse

from ..choices import CHOICES, ROLES, WORDS

METHODS: dict[str, tuple[str, ...]] = {
    "lander": (
        "neuron_map", "car", "inactive_neurons", "tune", "projections", "general_rank", "specific_rank",
        "attention_modules", "attention_layers", "attention_rank",
    ),
    "lslo": ("rank", "index", "prune"),
    "lora": ("rank",),
}  # fmt: skip
"""Options of every method, by the names of its arguments."""
LANDER_DEFAULTS = {
    "car": "off",
    "inactive_neurons": "keep",
    "tune": "pair",
    "projections": "all",
    "general_rank": 6,
    "specific_rank": 2,
    "attention_layers": "all",
    "attention_rank": 6,
}
"""Of `LanderConfig`, which a command line's help does not import."""
LSLO_RANK, LORA_RANK = 8, 16


def add_method_options(parser: argparse.ArgumentParser) -> None:
    """Add `--method`, and the options of all methods; what is not given is None."""
    parser.add_argument(
        "--method",
        choices=list(METHODS),  # completion looks for a first one
        default="lander",
        help="lander: neurons of the pair's languages; lslo: low-rank factors of each language; lora: PEFT's LoRA on "
        "all linear layers, shared by all pairs",
    )
    parser.add_argument("--neuron-map", help="from landermt detect; without it all neurons of all FFNs are tuned")
    group = parser.add_argument_group("--method lander")
    for name in ("car", "inactive_neurons", "tune", "projections", "attention_layers"):
        flag = f"--{name.replace('_', '-')}"
        group.add_argument(flag, choices=CHOICES[name], help=f"(default: {LANDER_DEFAULTS[name]})")
    for name in ("general_rank", "specific_rank"):
        flag = f"--{name.replace('_', '-')}"
        group.add_argument(flag, type=int, help=f"0: whole rows (default: {LANDER_DEFAULTS[name]})")
    group.add_argument(
        "--attention-modules",
        nargs="+",
        choices=(*ROLES, "none"),
        metavar="ROLE",
        help="of q, k, v, o, shared by all pairs, or none (default: all, where the base's attention is known)",
    )
    group.add_argument("--attention-rank", type=int, help=f"(default: {LANDER_DEFAULTS['attention_rank']})")
    group = parser.add_argument_group("--method lslo and --method lora")
    group.add_argument(
        "--rank",
        nargs="+",
        metavar="R",
        help="one rank, or with lslo one of each language: en=2 de=2 wo=8 "
        f"(default: {LSLO_RANK} with lslo, {LORA_RANK} with lora)",
    )
    group.add_argument("--index", choices=WORDS, help="lslo: whose factors a sample uses (default: as in the paper)")
    group.add_argument("--prune", type=float, metavar="RATIO", help="lslo: prune gradually to this share, such as 0.9")
