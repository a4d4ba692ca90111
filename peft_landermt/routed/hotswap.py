"""Exchanging the weights of a loaded adapter for those of another one, in place."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
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
    assert isinstance(config, RoutedConfig) and config.source is not None
    with replacing(model, adapter_name, config):
        set_peft_model_state_dict(model, dict(config.source.tensors()), adapter_name=adapter_name)


@contextmanager
def replacing(model: PeftModel, adapter_name: str, new: RoutedConfig) -> Iterator[None]:
    """Check that an adapter folder can take the place of a loaded adapter; its weights are to be loaded inside.

    Raises:
        AdapterError: It has another form, or is damaged.
        ConcurrencyError: Another thread's call is in progress.
    """
    current = model.peft_config[adapter_name]
    assert isinstance(current, RoutedConfig) and new.source is not None
    current.check_same_form(new)
    others = len(model.peft_config) > 1
    check_state(new.source.tensors(), *expected_to_replace(model, new, adapter_name), others_loaded=others)
    new.source.check_digest()
    source, current.source = current.source, new.source
    new.source.is_awaited = True
    try:
        with model.base_model.routing.writing("loading weights"):
            yield
    except BaseException:
        current.source = source
        raise
    current.take_over(new)
