"""One pair of an adapter as a plain LoRA adapter of PEFT, for programs that know nothing of this package."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from peft import LoraConfig, PeftModel, get_peft_model_state_dict
from torch import nn
from transformers.pytorch_utils import Conv1D

from ..errors import AdapterError, ConfigError
from ..linear import features
from ..outputs import files_in_place
from .call import Team
from .config import RoutedConfig
from .folder import PREFIX, save_weights
from .layer import RoutedLayer
from .projection import Projection, Update
from .state import State


class Factors(NamedTuple):
    """Low-rank factors of a linear layer: ΔW = B A.

    Attributes:
        layer: The base layer.
        down: A, (r, in).
        up: B, (out, r).
    """

    layer: nn.Module
    down: torch.Tensor
    up: torch.Tensor


def export_lora(
    model: PeftModel,
    folder: str | os.PathLike[str],
    language_pair: str | None = None,
    adapter_name: str = "default",
) -> Path:
    """Save one pair of an adapter as a LoRA adapter, which computes the same.

    PEFT loads the folder without this package, and so do engines that read LoRA adapters. Every module has the rank
    that the pair uses there; where ranks differ, `rank_pattern` and `alpha_pattern` of the LoRA config name them.
    Scaling is in A. The prompt that an adapter was trained with is not part of a LoRA adapter; `landermt export`
    writes it into the card.

    Args:
        model: A model with an adapter of this package: any LSLo adapter, or a LANDER adapter whose blocks are all
            low-rank, without gates and dropped neurons.
        folder: The folder to write.
        language_pair: One of the adapter's pairs; not needed where it has one, or none.
        adapter_name: The adapter.

    Returns:
        The folder.

    Raises:
        AdapterError: There is no such adapter, it is none of this package, or it is offloaded.
        ConfigError: What the adapter does is no low-rank sum: it tunes whole rows of weights, or routes neurons.
        LanguagePairError: The adapter does not hold the pair, or holds several and none is named.
    """
    config = model.peft_config.get(adapter_name)
    if not isinstance(config, RoutedConfig):
        problem = f"name a LANDER or LSLO adapter; loaded: {list(model.peft_config)}."
        raise AdapterError("adapter_name", adapter_name, problem)
    routing = model.base_model.routing
    pair = routing.pair_of(adapter_name) if language_pair is None else routing.check_pair(adapter_name, language_pair)
    found = low_rank_factors(model, adapter_name, pair)
    state: State = {
        key: value
        for key, value in get_peft_model_state_dict(model, adapter_name=adapter_name).items()
        if "_blocks." not in key  # saved modules
    }
    for name, each in found.items():
        state[f"{PREFIX}{name}.lora_A.weight"] = each.down
        state[f"{PREFIX}{name}.lora_B.weight"] = each.up
    lora = _config(config, found, model.get_base_model())
    with files_in_place(folder) as written:
        save_weights(state, written)
        lora.save_pretrained(str(written))
    return Path(folder)


@torch.no_grad()
def low_rank_factors(model: PeftModel, adapter_name: str, pair: str | None) -> dict[str, Factors]:
    """List what an adapter adds to the linear layers of its base for one pair, as low-rank factors.

    Args:
        model: A model with the adapter.
        adapter_name: An adapter of this package.
        pair: One of its pairs; None for an adapter without.

    Returns:
        Factors by the name of the linear layer in the base model.

    Raises:
        AdapterError: The adapter is offloaded.
        ConfigError: It is no low-rank sum.
    """
    found = {}
    for name, layer in model.get_base_model().named_modules():
        if not isinstance(layer, RoutedLayer) or not layer.holds(adapter_name):
            continue
        blocks = layer.blocks(adapter_name)
        if any(weight.is_meta for weight in blocks.parameters()):
            raise AdapterError("adapter_name", adapter_name, "is offloaded; load it into a base that is not.")
        if blocks.not_additive is not None:
            problem = f"adapter {adapter_name!r} {blocks.not_additive}, which no LoRA adapter does; merge it instead."
            raise ConfigError("adapter_name", adapter_name, problem)
        if not blocks.concerns(pair):
            continue
        for key, projection in layer.projections.items():
            team = Team(layer.routing.call([]), blocks, (pair,))
            updates = layer.share(key, team, None).updates
            if updates:
                full = f"{name}.{key}".rstrip(".").replace(".base_layer", "")
                found[full] = _joined(updates, projection, adapter_name)
    return found


def _joined(updates: Sequence[Update], projection: Projection, adapter_name: str) -> Factors:
    """One pair of factors, whose rank is the sum of the updates' ranks."""
    downs, ups = [], []
    for update in updates:
        if update.down is None or update.up is None:
            problem = f"adapter {adapter_name!r} tunes whole rows of weights, which no LoRA adapter does"
            raise ConfigError("general_rank", None, f"{problem}; train one with general_rank and specific_rank.")
        up = update.up
        if update.place is not None:
            up = up.new_zeros(projection.out_features, up.shape[1]).index_copy(0, update.place, up)
        downs.append(update.down)
        ups.append(up)
    return Factors(projection.base_layer, torch.cat(downs), torch.cat(ups, dim=1))


def _config(config: RoutedConfig, found: dict[str, Factors], base: nn.Module) -> LoraConfig:
    """A LoRA config whose scaling is 1 in every module."""
    ranks = {name: each.down.shape[0] for name, each in found.items()}
    rank = Counter(ranks.values()).most_common(1)[0][0]
    others = {name: each for name, each in ranks.items() if each != rank}
    return LoraConfig(
        task_type=config.task_type,
        base_model_name_or_path=config.base_model_name_or_path or getattr(base, "name_or_path", None) or None,
        revision=config.revision,
        inference_mode=True,
        r=rank,
        lora_alpha=rank,
        rank_pattern=others,
        alpha_pattern=others,
        target_modules=_shortest(set(found), base),
        modules_to_save=config.modules_to_save,
        fan_in_fan_out=all(isinstance(each.layer, Conv1D) for each in found.values()),
    )


def _shortest(names: set[str], base: nn.Module) -> list[str]:
    """Last segments of modules' names, which all programs understand, where they name no other linear layers."""
    segments = {name.rpartition(".")[2] for name in names}
    linear = {
        name.replace(".base_layer", "")
        for name, module in base.named_modules()
        if features(module) is not None and "_blocks." not in name
    }
    others = {name for name in linear - names if name.rpartition(".")[2] in segments}
    return sorted(names if others else segments)
