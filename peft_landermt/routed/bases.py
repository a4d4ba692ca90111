"""Base models, as they are without adapters."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

from ..errors import ConfigError, LanderError
from .config import RoutedConfig
from .layer import RoutedLayer
from .projection import RoutedLinear


def without_adapters(model: nn.Module) -> nn.Module:
    """View the model so that adapted modules show as those they wrap."""
    view = nn.Module()
    for name, module in model.named_children():
        if isinstance(module, (RoutedLayer, RoutedLinear)):
            module = module.base_layer
        routed = any(isinstance(child, (RoutedLayer, RoutedLinear)) for child in module.modules())
        view.add_module(name, without_adapters(module) if routed else module)
    return view


def check_fingerprint(
    config: RoutedConfig,
    model: nn.Module,
    find: Callable[[], str | None],
    error: type[LanderError],
    weights: str = "weights",
) -> None:
    """Check that the weights are those of the base that an adapter was made on, where it says which these are.

    Args:
        config: Of the adapter.
        model: The model, with or without adapters.
        find: Gives the fingerprint of the model's weights; None where they cannot be read.
        error: What is raised where the two differ.
        weights: What the weights are, for the message.

    Raises:
        LanderError: They are of another base.
        ConfigError: They cannot be compared because they hold a merged adapter.
    """
    if config.base_fingerprint is None or not config.verify_base:
        return
    if any(isinstance(module, RoutedLayer) and module.merged for module in model.modules()):
        raise ConfigError("verify_base", True, "the base weights hold a merged adapter; call unmerge_adapter() first.")
    found = find()
    if found is not None and found != config.base_fingerprint:
        raise error(
            "base_fingerprint",
            config.base_fingerprint,
            f"the model's {weights} have {found}: the adapter was made for other weights. Load the base model it "
            "names, or set verify_base=False in its config to use it all the same.",
        )
