"""What the tensors of an LSLo adapter tell of its layers and languages."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import torch
from peft.utils import SAFETENSORS_WEIGHTS_NAME
from safetensors.torch import load_file

from ..lslo import LsloConfig
from ..lslo.index import mean_weights, position_of
from ..lslo.pruning import demand
from ..routed.folder import PREFIX


class LanguageFacts(NamedTuple):
    """What an LSLo adapter tells.

    Attributes:
        weights: By stack, how much of the source and of the target language every layer takes; empty where no index
            was learned.
        demand: By language and layer, what [`subspace_demand`][peft_landermt.subspace_demand] returns; empty where
            nothing was pruned, or ranks differ.
    """

    weights: dict[str, list[tuple[float, float]]]
    demand: dict[str, dict[str, float]]


def language_facts(config: LsloConfig, folder: Path) -> LanguageFacts:
    """Read the weights of a learned index, and what pruning has left, from an adapter folder."""
    two_stacks = isinstance(config.index, dict)
    logits: list[tuple[str, torch.Tensor]] = []
    pruned: list[tuple[str, str, torch.Tensor]] = []
    for key, tensor in load_file(folder / SAFETENSORS_WEIGHTS_NAME).items():
        module, mark, name = key.removeprefix(PREFIX).partition(".lslo_blocks.")
        place = position_of(module, two_stacks)
        if mark and name == "index_logits":
            logits.append((module, tensor))
        elif mark and name.endswith("_B") and place is not None:
            pruned.append((f"{place.stack}.{place.layer}", name.removesuffix("_B"), tensor))
    comparable = config.pruned and len({tensor.shape[1] for _, _, tensor in pruned}) == 1
    return LanguageFacts(mean_weights(logits, two_stacks), demand(pruned) if comparable else {})
