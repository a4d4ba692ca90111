"""Base models, as they are without adapters."""

from __future__ import annotations

from torch import nn

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
