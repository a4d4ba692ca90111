"""A linear layer with low-rank factors of each language: h = W x + scaling · B_l A_l x, l a language of the sample."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import torch
from peft import PeftModel
from torch import nn

from ..errors import AdapterError
from ..linear import device_and_dtype, features
from ..routed.call import Team
from ..routed.layer import RoutedLayer
from ..routed.projection import Projection, Share
from ..routed.routing import Routing
from .factors import LanguageFactors

LONG = 16
"""Tokens of a sample, from which on factors of its own are cheaper than those of all languages side by side."""


class LsloLinear(RoutedLayer, Projection):
    """Wraps a linear layer of any class, quantized ones included, which is stored as `base_layer`.

    Args:
        base_layer: The linear layer.
        routing: What all adapted layers of the model share.
    """

    adapter_layer_names = ("lslo_blocks",)
    name = ""

    def __init__(self, base_layer: nn.Module, routing: Routing) -> None:
        super().__init__(base_layer, routing)
        self.__dict__["layer"] = self  # it has one projection, itself
        self.in_features, self.out_features = features(base_layer)  # type: ignore[misc]
        self.lslo_blocks = nn.ModuleDict()

    def update_layer(
        self,
        adapter_name: str,
        word: str,
        ranks: Mapping[str, int],
        scaling: float = 1.0,
        dropout: float = 0.0,
        init_weights: bool | Literal["paper"] = True,
        inference_mode: bool = False,
    ) -> None:
        """Add an adapter; see [`LanguageFactors`]. With `inference_mode` it stays frozen."""
        sizes, place = (self.in_features, self.out_features), device_and_dtype(self.base_layer)
        made = LanguageFactors(word, ranks, *sizes, *place, scaling, dropout, init_weights)
        self.lslo_blocks[adapter_name] = made.train(self.training)
        self.set_adapter(self.active_adapters, inference_mode=inference_mode)

    @property
    def projection_names(self) -> tuple[str, ...]:
        """The name of the one linear layer, which is this layer's own."""
        return (self.name,)

    @property
    def projections(self) -> Mapping[str, Projection]:
        """The one linear layer."""
        return {self.name: self}

    def restore(self) -> nn.Module:
        """Return the base layer; nothing in it was replaced."""
        return self.base_layer

    @property
    def _base_weights(self) -> list[str]:
        return ["base_layer.weight"]

    def _run(self, *args: Any, **kwargs: Any) -> Any:
        return Projection.forward(self, *args, **kwargs)

    def blocks(self, adapter_name: str) -> LanguageFactors:
        """Return the factors of an adapter."""
        blocks = self.lslo_blocks[adapter_name]
        assert isinstance(blocks, LanguageFactors)
        return blocks

    def share(self, projection: str, team: Team, states: torch.Tensor | None) -> Share:
        """Tell what a team's adapter makes of the layer; see [`RoutedLayer.share`]."""
        team.met.add(projection)
        # on a CPU in the factors' own type; many have no instructions for half precision
        own = next(iter(team.blocks.parameters())).dtype
        dtype = own if states is None or states.device.type == "cpu" else states.dtype
        by_sample = states is not None and states.dim() == 3 and states.shape[1] >= LONG
        if by_sample:  # not kept from token to token: these are for the tokens of a prompt
            return Share((team.blocks.update(team, dtype, by_sample=True),))
        return Share((team.kept(("factors", dtype), team.blocks.update, team, dtype),))


def lslo_layers(model: nn.Module, adapter_name: str) -> dict[str, LsloLinear]:
    """List the layers of a model that an LSLo adapter has factors at, by their names in the base model.

    Raises:
        AdapterError: There are none.
    """
    plain = model.get_base_model() if isinstance(model, PeftModel) else model
    found = {
        name.removeprefix("_fsdp_wrapped_module."): module
        for name, module in plain.named_modules()
        if isinstance(module, LsloLinear) and module.holds(adapter_name)
    }
    if not found:
        loaded = list(getattr(model, "peft_config", {}))
        raise AdapterError("adapter_name", adapter_name, f"is no LSLo adapter of the model; loaded: {loaded}.")
    return found
