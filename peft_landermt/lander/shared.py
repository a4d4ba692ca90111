"""What one adapter holds for the attention of one layer: low-rank factors that all its pairs share.

Attention has no neurons, so its blocks belong to `general`: ΔW = B A for each projection that is tuned.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import nn

from ..attention import Attention
from ..routed.blocks import Blocks
from ..routed.call import Team
from ..routed.layer import RoutedLayer
from ..routed.projection import Share, Update
from ..routed.routing import Routing
from .layout import GENERAL
from .rates import READING, WRITING


class SharedFactors(Blocks):
    """Low-rank factors of one adapter at one attention module.

    For every role (q, k, v or o) the parameters `general_{role}_A` (r, in) and `general_{role}_B` (out, r).

    Args:
        attention: The attention module.
        roles: What is tuned.
        rank: r.
        pairs: Language pairs for which the layer is adapted; empty for all.
        device: Device of the parameters.
        dtype: Floating-point type of the parameters.
        init_weights: Whether ΔW starts at zero; random otherwise.
    """

    def __init__(
        self,
        attention: Attention,
        roles: Sequence[str],
        rank: int,
        pairs: Sequence[str],
        device: torch.device,
        dtype: torch.dtype,
        init_weights: bool = True,
    ) -> None:
        super().__init__()
        self.roles, self.pairs = tuple(roles), tuple(pairs)
        self.projections = tuple(dict.fromkeys(attention.projection(role) for role in roles))
        for role in roles:
            inside, outside = attention.size(role)
            factor_a = torch.empty(rank, inside, device=device, dtype=dtype)
            factor_b = torch.zeros(outside, rank, device=device, dtype=dtype)
            nn.init.kaiming_uniform_(factor_a, a=math.sqrt(5))
            if not init_weights:
                nn.init.uniform_(factor_b, -1 / math.sqrt(inside), 1 / math.sqrt(inside))
            self.register_parameter(f"{GENERAL}_{role}_A", nn.Parameter(factor_a))
            self.register_parameter(f"{GENERAL}_{role}_B", nn.Parameter(factor_b))

    def kind(self, parameter: str) -> str:
        """Tell what a parameter is, by its name: a kind of [`RATES`][peft_landermt.lander.rates.RATES]."""
        return READING if parameter.endswith("_A") else WRITING

    def factors(self, role: str) -> tuple[torch.Tensor, torch.Tensor]:
        """A (r, in) and B (out, r) of a role."""
        return self.get_parameter(f"{GENERAL}_{role}_A"), self.get_parameter(f"{GENERAL}_{role}_B")


class LanderAttention(RoutedLayer):
    """Wraps the attention of a base model, stored as `base_layer`, and reuses its forward.

    Args:
        attention: The attention, with its module.
        routing: What all adapted layers of the model share.
    """

    adapter_layer_names = ("lander_blocks",)

    def __init__(self, attention: Attention, routing: Routing) -> None:
        super().__init__(attention.module, routing)
        self.attention = attention
        self.lander_blocks = nn.ModuleDict()
        self._put_in_place()

    def update_layer(
        self,
        adapter_name: str,
        roles: Sequence[str],
        rank: int,
        pairs: Sequence[str],
        init_weights: bool = True,
        inference_mode: bool = False,
    ) -> None:
        """Add an adapter; see [`SharedFactors`]. With `inference_mode` it stays frozen."""
        made = SharedFactors(self.attention, roles, rank, pairs, *self.device_and_dtype(), init_weights)
        self.lander_blocks[adapter_name] = made
        self.set_adapter(self.active_adapters, inference_mode=inference_mode)

    @property
    def projection_names(self) -> tuple[str, ...]:
        """Names of the linear layers."""
        return tuple(dict.fromkeys(self.attention.layout.names))

    def blocks(self, adapter_name: str) -> SharedFactors:
        """Return the factors of an adapter."""
        blocks = self.lander_blocks[adapter_name]
        assert isinstance(blocks, SharedFactors)
        return blocks

    def share(self, projection: str, team: Team, states: torch.Tensor | None) -> Share:
        """Tell what a team's adapter makes of a projection; see [`RoutedLayer.share`]."""
        team.met.add(projection)
        first = next(team.blocks.parameters())
        dtype = first.dtype if states is None or states.device.type == "cpu" else states.dtype
        return Share(team.kept((projection, dtype), self._updates, projection, team.blocks, dtype))

    def _updates(self, projection: str, blocks: SharedFactors, dtype: torch.dtype) -> tuple[Update, ...]:
        updates = []
        for role in blocks.roles:
            if self.attention.projection(role) == projection:
                down, up = (factor.to(dtype) for factor in blocks.factors(role))
                updates.append(Update(down, up, place=self.attention.rows(role, down.device)))
        return tuple(updates)
