"""What one adapter holds for the attention of one layer: low-rank factors that all its pairs share.

Attention has no neurons, so what an adapter is made with belongs to `general`: ΔW = B A for each projection that is
tuned. Languages that are added later have factors of their own, for their pairs.
"""

from __future__ import annotations

import math

import torch
from torch import nn

from ..attention import Attention
from ..routed.blocks import READING, READING_VALUES, WRITING, WRITING_VALUES, Blocks
from ..routed.call import Team
from ..routed.layer import RoutedLayer
from ..routed.projection import Share, Update
from ..routed.routing import Routing
from .filling import keep_earlier
from .layout import GENERAL, BlockLayout


class SharedFactors(Blocks):
    """Low-rank factors of one adapter at one attention module.

    For `general` and every added language, and every role (q, k, v or o) of it, the parameters `{block}_{role}_A`
    (r, in) and `{block}_{role}_B` (out, r).

    Args:
        attention: The attention module.
        layout: Of the adapter at the FFN of the same layer; its `attention` says what is tuned.
        device: Device of the parameters.
        dtype: Floating-point type of the parameters.
        init_weights: Whether ΔW starts at zero; random otherwise.
    """

    def __init__(
        self,
        attention: Attention,
        layout: BlockLayout,
        device: torch.device,
        dtype: torch.dtype,
        init_weights: bool = True,
    ) -> None:
        super().__init__()
        self.layout = layout
        self.pairs = layout.language_pairs
        self.roles = {block: roles for block, (roles, _) in layout.attention.items()}
        self.ranks = {block: rank for block, (_, rank) in layout.attention.items()}
        tuned = [role for roles in self.roles.values() for role in roles]
        self.projections = tuple(dict.fromkeys(attention.projection(role) for role in tuned))
        self.languages: dict[str | None, tuple[str, ...]] = {
            pair: tuple(block for block in layout.attention if block in pair.split("-")) for pair in self.pairs
        }
        frozen = []
        for block, role in [(block, role) for block, roles in self.roles.items() for role in roles]:
            inside, outside = attention.size(role)
            factor_a = torch.empty(self.ranks[block], inside, device=device, dtype=dtype)
            factor_b = torch.zeros(outside, self.ranks[block], device=device, dtype=dtype)
            nn.init.kaiming_uniform_(factor_a, a=math.sqrt(5))
            if not init_weights:
                nn.init.uniform_(factor_b, -1 / math.sqrt(inside), 1 / math.sqrt(inside))
            self.register_parameter(f"{block}_{role}_A", nn.Parameter(factor_a))
            self.register_parameter(f"{block}_{role}_B", nn.Parameter(factor_b))
            frozen += [] if layout.is_trained(block) else [f"{block}_{role}_A", f"{block}_{role}_B"]
        self.frozen = frozenset(frozen)

    def kind(self, parameter: str) -> str:
        """Tell what a parameter is, by its name."""
        kind, (_, role, _) = super().kind(parameter), parameter.rsplit("_", 2)
        return {READING: READING_VALUES, WRITING: WRITING_VALUES}[kind] if role in ("v", "o") else kind

    def factors(self, role: str, block: str = GENERAL) -> tuple[torch.Tensor, torch.Tensor]:
        """A (r, in) and B (out, r) of a role."""
        return self.get_parameter(f"{block}_{role}_A"), self.get_parameter(f"{block}_{role}_B")

    @torch.no_grad()
    def copy_block(self, language: str, earlier: str) -> None:
        """Give an added language's factors the values of an earlier block's, the first of them where it has more."""
        for role in set(self.roles.get(language, ())) & set(self.roles.get(earlier, ())):
            (factor_a, factor_b), (other_a, other_b) = (self.factors(role, block) for block in (language, earlier))
            factor_a[: len(other_a)] = other_a[: len(factor_a)]
            factor_b[:, : len(other_a)] = other_b[:, : len(factor_a)]

    def used_by(self, team: Team, role: str, dtype: torch.dtype) -> list[tuple[str, torch.Tensor | None]]:
        """List blocks that some of a team's samples use in a role, `general` first, and, where not all are 1, their
        weights (n, 1, r) or (n, 1, 1), or (r,) of all samples."""
        found: list[tuple[str, torch.Tensor | None]] = []
        tuned = [block for block, roles in self.roles.items() if role in roles]
        spoken = [[each for each in self.languages.get(pair, ()) if each in tuned] for pair in team.pairs]
        for block in tuned:
            weights = tuple(self.layout.weights(block, languages, self.ranks) for languages in spoken)
            if all(weight == 1 for row in weights for weight in row):
                found.append((block, None))
            elif any(weight for row in weights for weight in row):
                device = self.factors(role, block)[0].device
                found.append((block, team.weigh(weights, (1,) * len(weights[0]), dtype, device)))
        return found


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
        layout: BlockLayout,
        init_weights: bool = True,
        inference_mode: bool = False,
    ) -> None:
        """Add an adapter, or give one other factors; see [`SharedFactors`]. With `inference_mode` it stays frozen."""
        made = SharedFactors(self.attention, layout, *self.device_and_dtype(), init_weights)
        if self.holds(adapter_name):
            keep_earlier(made, self.blocks(adapter_name))
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
        dtype = team.blocks.dtype if states is None or states.device.type == "cpu" else states.dtype
        return Share(team.kept((projection, dtype), self._updates, projection, team, dtype))

    def _updates(self, projection: str, team: Team, dtype: torch.dtype) -> tuple[Update, ...]:
        updates = []
        for role in dict.fromkeys(role for roles in team.blocks.roles.values() for role in roles):
            if self.attention.projection(role) != projection:
                continue
            for block, scale in team.blocks.used_by(team, role, dtype):
                down, up = (factor.to(dtype) for factor in team.blocks.factors(role, block))
                place = self.attention.rows(role, down.device)
                updates.append(Update.low_rank(down, up, place=place, scale=scale))
        return tuple(updates)
