"""A linear layer that stays where it is, and computes what the adapters of a call make of it.

For the samples of one adapter (a team):

    y = g · (W + ΔW) (m · x) + b

ΔW is a sum of thin products, one for each block that takes part (`Update`); g scales outputs (eq. 7 and 8 of LANDeRMT,
one gate per neuron), m leaves out inputs (eq. 9). `RoutedLinear.forward` computes it for a batch, `weight_of` as a
weight, to be merged or multiplied once for base and delta together.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn

from ..linear import features, is_plain_linear, weight_rows
from .call import Team


@dataclass(frozen=True, eq=False)
class Update:
    """What a block adds to a linear layer: z = s · down x, y += up z.

    Low-rank factors have both `down` (r, in) and `up` (out, r), or `up` (n, r) and the `place` (n,) of its outputs.
    Whole rows of outputs have `down` (n, in) and no `up`, but a place; columns of inputs have `up` (out, n) and their
    place, in `pick` (n,). Where each sample has factors of its own, `down` is (samples, r, in) and `up` (samples, out,
    r).

    Attributes:
        scale: s, broadcast with z (samples, tokens, r or n): which samples use what, and gates; None for 1.
        dropout: Share of the inputs that the update does not see.
    """

    down: torch.Tensor | None = None
    up: torch.Tensor | None = None
    pick: torch.Tensor | None = None
    place: torch.Tensor | None = None
    scale: torch.Tensor | None = None
    dropout: float = 0.0

    @classmethod
    def low_rank(cls, down: torch.Tensor, up: torch.Tensor, scale: torch.Tensor | None = None, **rest: Any) -> Update:
        """Make an update of two factors, each laid out so that its long side is contiguous.

        On CPUs the backward pass through a thin matrix that lies the other way takes up to three times as long. A
        scale (r,) that all samples have is taken into the factors.
        """
        if scale is not None and scale.dim() == 1:
            down, scale = down * scale.unsqueeze(1), None
        if down.device.type == "cpu":
            down, up = down.contiguous(), up.mT.contiguous().mT
        return cls(down, up, scale=scale, **rest)

    @property
    def dtype(self) -> torch.dtype:
        """Type that the product is taken in."""
        return (self.up if self.down is None else self.down).dtype  # type: ignore[union-attr]

    def add_to(self, weight: torch.Tensor) -> torch.Tensor:
        """Compute W + ΔW, for a weight (out, in) in a type at least as precise as the update's; not where it has a
        scale."""
        if self.down is None:
            assert self.up is not None and self.pick is not None
            return weight.index_add(1, self.pick, self.up.to(weight.dtype))
        if self.up is None:
            assert self.place is not None
            return weight.index_add(0, self.place, self.down.to(weight.dtype))
        product = (self.up @ self.down).to(weight.dtype)
        return weight + product if self.place is None else weight.index_add(0, self.place, product)


@dataclass(frozen=True, eq=False)
class Share:
    """What an adapter makes of a linear layer in a call.

    Attributes:
        updates: The summands of ΔW.
        mask: m, (in,) or (samples, 1, in); None for 1.
        scale: g, (out,) or (samples, 1 or tokens, out); None for 1.
        folds: Whether updates without a scale are better added to the weight than multiplied one by one.
    """

    updates: tuple[Update, ...] = ()
    mask: torch.Tensor | None = None
    scale: torch.Tensor | None = None
    folds: bool = False


def weight_of(layer: nn.Module, updates: Sequence[Update], share: Share | None = None) -> torch.Tensor:
    """Compute g · (W + ΔW) · m as a new tensor (out, in), in the type of the layer's weight.

    The sum is taken in the updates' type or the weight's, whichever is the more precise, and rounded once.

    Args:
        layer: The base layer.
        updates: The summands of ΔW, without scales.
        share: Where g and m come from, for one pair; without it both are 1.
    """
    stored = weight_rows(layer)
    weight = stored
    for update in updates:
        weight = update.add_to(weight.to(torch.promote_types(weight.dtype, update.dtype)))
    if share is not None and share.scale is not None:
        weight = weight.to(torch.promote_types(weight.dtype, share.scale.dtype)) * share.scale.unsqueeze(1)
    if share is not None and share.mask is not None:
        weight = weight.masked_fill(share.mask == 0, 0)
    return weight.to(stored.dtype, copy=weight is stored, memory_format=torch.contiguous_format)


def add_updates(result: torch.Tensor, states: torch.Tensor, updates: Sequence[Update]) -> torch.Tensor:
    """Compute y + ΔW x for the samples of one team.

    Args:
        result: y, (n, tokens, out).
        states: x, (n, tokens, in).
        updates: The summands of ΔW.
    """
    for update in updates:
        thin = states if update.pick is None else states.index_select(-1, update.pick)
        if update.dropout:
            thin = F.dropout(thin, update.dropout)
        if update.down is not None:
            thin = _multiplied(thin, update.down)
        if update.scale is not None:
            thin = thin * update.scale
        if update.up is not None:
            thin = _multiplied(thin, update.up)
        thin = thin.to(result.dtype)
        result = result + thin if update.place is None else result.index_add(-1, update.place, thin)
    return result


def _multiplied(states: torch.Tensor, factor: torch.Tensor) -> torch.Tensor:
    """Multiply (n, tokens, in) by (out, in), or by (n, out, in)."""
    states = states.to(factor.dtype)
    return F.linear(states, factor) if factor.dim() == 2 else states @ factor.transpose(1, 2)


class Asked(Protocol):
    """The layer that a projection belongs to."""

    _active_adapter: str | list[str]
    _disable_adapters: bool
    merged_adapters: list[str]

    def teams(self, device: torch.device, /) -> tuple[Team, ...]:
        """Tell who plays in the call in progress."""

    def share(self, projection: str, team: Team, states: torch.Tensor | None, /) -> Share:
        """Tell what a team's adapter makes of a projection."""


class Wrapper(nn.Module, BaseTunerLayer):
    """Stands in the place of a module of the base, which is stored as `base_layer`.

    Args:
        base_layer: The module.
    """

    def __init__(self, base_layer: nn.Module) -> None:
        super().__init__()
        self.base_layer = base_layer
        self.training = base_layer.training

    def __getattr__(self, name: str) -> Any:
        """Forward attributes that this module lacks to the base layer, which some models read from outside."""
        try:
            return super().__getattr__(name)
        except AttributeError:
            if name == "base_layer":
                raise
            return getattr(super().__getattr__("base_layer"), name)


class Projection(Wrapper):
    """A linear layer of the base, stored as `base_layer`, with what the adapters of each call add to it.

    Attributes:
        name: Its name at its layer.
        layer: The tuner layer that it belongs to; may be itself.
    """

    name: str
    layer: Asked
    in_features: int
    out_features: int

    def forward(self, states: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        """Map (B, ..., in) to (B, ..., out)."""
        teams, base = self.layer.teams(states.device), self._modules["base_layer"]
        assert base is not None
        if not teams:
            return base(states, *args, **kwargs)
        shape = states.shape[:-1]
        states = teams[0].call.by_sample(states)
        shares, folds = [], False
        for team in teams:
            share = self.layer.share(self.name, team, states)
            if share.mask is not None:
                states = team.put(states, team.take(states) * share.mask)
            folds = folds or share.folds
            shares.append(share)
        result, done = self._fold(states, teams, shares) if folds and is_plain_linear(base) else (None, ())
        if result is None:
            result = base(states)
        for team, share in zip(teams, shares, strict=True):
            updates = share.updates if not done else [update for update in share.updates if update not in done]
            if not updates and share.scale is None:
                continue
            part = add_updates(team.take(result), team.take(states), updates)
            if share.scale is not None:
                # the bias is not scaled: g (y - b) + b, in a form that is exact where g is 1
                scaled, bias = part * share.scale, self.bias
                part = scaled if bias is None else scaled + bias * (1 - share.scale)
            result = team.put(result, part)
        return result.reshape(*shape, -1)

    def _fold(
        self, states: torch.Tensor, teams: Sequence[Team], shares: Sequence[Share]
    ) -> tuple[torch.Tensor | None, Sequence[Update]]:
        """Multiply every sample once, by W and what can be added to it; return also which updates were added.

        None, and none, where nothing can be added.
        """
        folded = [[item for item in share.updates if share.folds and item.scale is None] for share in shares]
        if not any(folded):
            return None, ()
        base, bias, first = self.base_layer, self.bias, teams[0]
        done = list(chain.from_iterable(folded))
        if first.samples is None:  # no other team has samples of its own: their deltas add up
            weight = first.kept(("weight", self.name), weight_of, base, done)
            return F.linear(states, weight, bias), done
        products: list[torch.Tensor] = []
        served: list[torch.Tensor] = []
        for team, updates in zip(teams, folded, strict=True):
            if updates:
                weight = team.kept(("weight", self.name), weight_of, base, updates)
                products.append(F.linear(team.take(states), weight, bias))
                served.append(team.samples)  # type: ignore[arg-type]
        others, places = first.once(("others", len(served)), _complement, torch.cat(served), len(states))
        products.append(base(states.index_select(0, others)))
        return torch.cat(products).index_select(0, places), done

    @property
    def weight(self) -> torch.Tensor:
        """The base layer's weight, for code that asks for its type or device."""
        return self.base_layer.weight  # type: ignore[return-value]

    @property
    def bias(self) -> torch.Tensor | None:
        """The base layer's bias."""
        return getattr(self.base_layer, "bias", None)


class RoutedLinear(Projection):
    """A projection of a layer that has several; it holds no adapters, and to PEFT it is in the state of its layer.

    Args:
        base_layer: A linear layer of any class, quantized ones included.
        name: Its name at its layer.
        layer: The tuner layer that it belongs to.
    """

    def __init__(self, base_layer: nn.Module, name: str, layer: Asked) -> None:
        super().__init__(base_layer)
        self.name = name
        self.__dict__["layer"] = layer  # no child of this module, but the other way round
        self.in_features, self.out_features = features(base_layer)  # type: ignore[misc]

    def set_adapter(self, adapter_names: str | list[str], inference_mode: bool = False) -> None:
        """Do nothing; the layer's adapter counts."""

    def enable_adapters(self, enabled: bool) -> None:
        """Do nothing; the layer's state counts."""

    @property
    def _active_adapter(self) -> str | list[str]:
        return self.layer._active_adapter

    @property
    def _disable_adapters(self) -> bool:
        return self.layer._disable_adapters

    @property
    def merged_adapters(self) -> list[str]:
        """Adapters that are merged into the layer."""
        return self.layer.merged_adapters


def _complement(served: torch.Tensor, samples: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Samples that are not among (n,) distinct ones, and where each sample lies when these follow the former; found
    without waiting for the device."""
    is_other = torch.ones(samples, device=served.device).index_fill_(0, served, 0.0)
    others = is_other.argsort(descending=True)[: samples - served.shape[0]]
    return others, torch.cat([served, others]).argsort()
