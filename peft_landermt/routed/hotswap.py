"""Exchanging the weights of a loaded adapter for those of another one, in place."""

from __future__ import annotations

import os
from typing import Any

from peft import PeftConfig, PeftModel, set_peft_model_state_dict

from ..errors import AdapterError
from .config import RoutedConfig
from .state import check_state, expected_to_replace


def hotswap_adapter(
    model: PeftModel, folder: str | os.PathLike[str], adapter_name: str = "default", **download_options: Any
) -> None:
    """Put the weights of an adapter folder into a loaded adapter of the same form, without new tensors.

    Parameters keep their identity, so a compiled model needs no new compilation. PEFT's own function of this name
    serves LoRA only. To change between adapters of other forms, load both and call `set_adapter`.

    Args:
        model: A model with an adapter of this package.
        folder: Adapter folder or Hub repository.
        adapter_name: The loaded adapter whose weights are replaced.
        download_options: `revision`, `subfolder`, `token` and the like.

    Raises:
        AdapterError: There is no such adapter, it is merged, or the new one has another form; nothing is changed.
    """
    current = model.peft_config.get(adapter_name)
    if not isinstance(current, RoutedConfig):
        raise AdapterError(
            "adapter_name", adapter_name, f"name an adapter of this package; loaded: {list(model.peft_config)}."
        )
    config = PeftConfig.from_pretrained(str(folder), **download_options)
    current.check_same_form(config)
    assert isinstance(config, RoutedConfig) and config.source is not None
    weights = dict(config.source.tensors())
    others = len(model.peft_config) > 1
    check_state(weights, *expected_to_replace(model, config, adapter_name), others_loaded=others)
    config.source.check_digest()
    set_peft_model_state_dict(model, weights, adapter_name=adapter_name)
    current.take_over(config)
