"""Exchanging the weights of a loaded adapter for those of another one, in place."""

from __future__ import annotations

import os
from typing import Any

from peft import PeftModel, set_peft_model_state_dict
from peft.utils import load_peft_weights

from ..errors import AdapterError
from .config import LanderConfig
from .layer import LanderFFN

_SAME = (
    "language_pairs",
    "neuron_counts",
    "car",
    "inactive_neurons",
    "tune",
    "general_rank",
    "target_modules",
    "exclude_modules",
    "layers_to_transform",
    "layers_pattern",
    "modules_to_save",
    "base_fingerprint",
)


def hotswap_adapter(
    model: PeftModel, folder: str | os.PathLike[str], adapter_name: str = "default", **download_options: Any
) -> None:
    """Put the weights of an adapter folder into a loaded adapter of the same form, without new tensors.

    Parameters keep their identity, so a compiled model needs no new compilation. PEFT's own function of this name
    serves LoRA only. To change between adapters of other forms, load both and call `set_adapter`.

    Args:
        model: A model with a LANDER adapter.
        folder: Adapter folder or Hub repository.
        adapter_name: The loaded adapter whose weights are replaced.
        download_options: `revision`, `subfolder`, `token` and the like.

    Raises:
        AdapterError: There is no such adapter, it is merged, or the new one has another form; nothing is changed.
    """
    current = model.peft_config.get(adapter_name)
    if not isinstance(current, LanderConfig):
        raise AdapterError("adapter_name", adapter_name, f"name a LANDER adapter; loaded: {list(model.peft_config)}.")
    if any(adapter_name in layer.merged_adapters for layer in model.modules() if isinstance(layer, LanderFFN)):
        raise AdapterError("adapter_name", adapter_name, "is merged into the base; call unmerge_adapter() first.")
    config = LanderConfig.from_pretrained(str(folder), **download_options)
    for name in _SAME:
        if getattr(config, name) != getattr(current, name):
            raise AdapterError(
                name,
                getattr(config, name),
                f"the loaded adapter has {getattr(current, name)}; load_adapter and set_adapter take any form.",
            )
    weights = load_peft_weights(str(folder), device=str(model.device), **download_options)
    set_peft_model_state_dict(model, weights, adapter_name=adapter_name)
    current.neuron_map_signature = config.neuron_map_signature
