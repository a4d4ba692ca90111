"""The projections of an adapted FFN, as the base FFN's own forward sees them during one call.

For every group of samples that share an adapter, an input projection computes

    y_i = g_i · (w_i + Δw_i) · x_t + b_i            (eq. 7, 8, one gate per neuron)

for the neurons that take part, and the output projection reads h with the neurons that take none set to zero (eq. 9).
Whole rows that hold for all samples of a group are folded into the weight, so that one product serves base and delta.
"""

from __future__ import annotations

from functools import partial

import torch
import torch.nn.functional as F
from torch import nn

from ..linear import is_plain_linear, weight_rows
from .blocks import GENERAL_BLOCK, NeuronBlocks
from .groups import Group
from .routing import Keep, make_anew


def fold(layer: nn.Module, groups: list[Group], projection: str, *, is_output: bool) -> torch.Tensor:
    """The layer's weight with all folded deltas added to it, in the weight's own type and layout.

    The sum is taken in the deltas' type or the weight's, whichever is the more precise, and rounded once.
    """
    weight = weight_rows(layer)
    tuned = weight
    for group in groups:
        for block in group.folded_blocks():
            neurons, delta = group.blocks.neurons(block, projection), group.blocks.rows(block, projection)
            precise = torch.promote_types(tuned.dtype, delta.dtype)
            delta = (delta.t() if is_output else delta).to(precise)
            tuned = tuned.to(precise).index_add(int(is_output), neurons, delta)
    return tuned.to(weight.dtype)


def compute_type(states: torch.Tensor, blocks: NeuronBlocks) -> torch.dtype:
    """Type in which deltas are multiplied: their own on a CPU; many have no instructions for half precision."""
    return next(blocks.parameters()).dtype if states.device.type == "cpu" else states.dtype


def complement(samples: torch.Tensor, batch: int) -> torch.Tensor:
    """Those of `batch` samples that are not among (n,) distinct ones, found without waiting for the device."""
    is_other = torch.ones(batch, device=samples.device).index_fill_(0, samples, 0.0)
    return is_other.argsort(descending=True)[: batch - samples.shape[0]]


class InputRecorder(nn.Module):
    """Stands in for a projection and keeps what it was given last."""

    seen: torch.Tensor

    def __init__(self, base: nn.Module) -> None:
        super().__init__()
        self.base = base

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        self.seen = states
        return self.base(states)


class AdaptedProjection(nn.Module):
    """Stands in for one projection of the base FFN during one call.

    Args:
        base: The base projection.
        name: Its name in the FFN.
        groups: Groups of samples of this call.
        batch: N, number of samples of this call; some FFNs see their tokens as one flat batch.
        is_output: Whether it is the output projection.
        keep: Keeps what is made of the deltas, while no weight can change; see `Routing.keep`.
    """

    def __init__(
        self,
        base: nn.Module,
        name: str,
        groups: list[Group],
        batch: int,
        is_output: bool,
        keep: Keep = make_anew,
    ) -> None:
        super().__init__()
        self.base = base
        self.name = name
        self.groups = groups
        self.batch = batch
        self.is_output = is_output
        self.keep = keep
        self.called = False
        self.parts = groups[0].blocks.projections[name]
        self.folds = is_plain_linear(base)
        self._weight: torch.Tensor | None = None  # of all samples
        self._weights: list[tuple[torch.Tensor, torch.Tensor]] = []  # samples, and their weight
        if self.folds:
            self._fold()

    def _fold(self) -> None:
        # Without a route every group has all samples, and deltas are summed.
        teams = [self.groups] if self.groups[0].rows.samples is None else [[group] for group in self.groups]
        for team in teams:
            blocks = tuple((id(group.blocks), group.folded_blocks()) for group in team)
            if not any(names for _, names in blocks):
                continue
            make = partial(fold, self.base, team, self.name, is_output=self.is_output)
            weight, samples = self.keep((id(self.base), blocks), make), team[0].rows.samples
            if samples is None:
                self._weight = weight
            else:
                self._weights.append((samples, weight))
        if self._weights:
            served = torch.cat([samples for samples, _ in self._weights])
            self._others = complement(served, self.batch)
            self._places = torch.cat([served, self._others]).argsort()

    @property
    def weight(self) -> torch.Tensor:
        """For FFNs that read the projection's weight themselves."""
        return self.base.weight if self._weight is None else self._weight  # type: ignore[return-value]

    @property
    def bias(self) -> torch.Tensor | None:
        return getattr(self.base, "bias", None)

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        """Input projection: (N, ..., d) → (N, ..., p). Output projection: (N, ..., p) → (N, ..., d)."""
        self.called = True
        if states.shape[0] != self.batch:
            shape = states.shape[:-1]
            return self._forward(states.reshape(self.batch, -1, states.shape[-1])).reshape(*shape, -1)
        return self._forward(states)

    def _forward(self, states: torch.Tensor) -> torch.Tensor:
        if self.is_output:
            for group in self.groups:
                chosen = group.take(states)
                if (mask := group.hidden_mask(chosen)) is not None:
                    states = group.put(states, chosen * mask)
        result = self._multiply(states)
        for group in self.groups:
            chosen, before = group.take(states), group.take(result)
            after = self._add_deltas(group, chosen, before)
            if not self.is_output and (gate := group.input_gate(chosen)) is not None:
                gate = torch.cat([gate] * self.parts, dim=-1) if self.parts > 1 else gate
                after = after * gate if self.bias is None else after + (after - self.bias) * (gate - 1)
            if after is not before:
                result = group.put(result, after.to(result.dtype))
        return result

    def _multiply(self, states: torch.Tensor) -> torch.Tensor:
        """Every sample times the weight with what is folded for it."""
        if self._weight is not None:
            return F.linear(states, self._weight, self.bias)
        if not self._weights:
            return self.base(states)
        products = [F.linear(states.index_select(0, samples), weight, self.bias) for samples, weight in self._weights]
        products.append(self.base(states.index_select(0, self._others)))
        return torch.cat(products).index_select(0, self._places)

    def _add_deltas(self, group: Group, states: torch.Tensor, result: torch.Tensor) -> torch.Tensor:
        """Add what is not folded: the general block, then all specific neurons in one product."""
        folded = group.folded_blocks() if self.folds else ()
        blocks = group.blocks
        if GENERAL_BLOCK in blocks.layout.tuned_blocks and GENERAL_BLOCK not in folded:
            result = self._add_general(group, states, result)
        specific = [block for block in group.specific_blocks if block not in folded]
        if specific:
            neurons, rows = self._rows(blocks, tuple(specific), compute_type(states, blocks))
            scale = group.specific_mask(states, self.parts)
            gate = group.delta_gate(specific[0], states)
            if gate is not None:
                scale = gate if scale is None else scale * gate
            result = self._add_rows(states, result, neurons, rows, scale)
        return result

    def _add_general(self, group: Group, states: torch.Tensor, result: torch.Tensor) -> torch.Tensor:
        blocks = group.blocks
        gate = group.delta_gate(GENERAL_BLOCK, states)
        dtype = compute_type(states, blocks)
        if not blocks.is_low_rank(GENERAL_BLOCK):
            return self._add_rows(states, result, *self._rows(blocks, (GENERAL_BLOCK,), dtype), gate)
        factor_a, wide_b = self.keep((id(blocks), self.name, dtype), lambda: self._factors(blocks, dtype))
        states = states.to(dtype)
        if self.is_output:
            small = states @ wide_b
            return result + F.linear(small if gate is None else small * gate, factor_a.t()).to(result.dtype)
        small = F.linear(states, factor_a)
        return result + F.linear(small if gate is None else small * gate, wide_b).to(result.dtype)

    def _factors(self, blocks: NeuronBlocks, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
        """A (r, d) and B (p, r) of the general block, B with zero rows for other neurons."""
        factor_a, factor_b = (factor.to(dtype) for factor in blocks.factors(GENERAL_BLOCK, self.name))
        neurons = blocks.neurons(GENERAL_BLOCK, self.name)
        empty = factor_b.new_zeros(blocks.layout.neurons * self.parts, factor_b.shape[1])
        return factor_a, empty.index_copy(0, neurons, factor_b)

    def _rows(
        self, blocks: NeuronBlocks, names: tuple[str, ...], dtype: torch.dtype
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Neurons (n,) and delta rows (n, d) of some blocks, one after the other."""

        def make() -> tuple[torch.Tensor, torch.Tensor]:
            neurons = torch.cat([blocks.neurons(name, self.name) for name in names])
            return neurons, torch.cat([blocks.rows(name, self.name) for name in names]).to(dtype)

        return self.keep((id(blocks), self.name, names, dtype), make)

    def _add_rows(
        self,
        states: torch.Tensor,
        result: torch.Tensor,
        neurons: torch.Tensor,
        rows: torch.Tensor,
        scale: torch.Tensor | None,
    ) -> torch.Tensor:
        states = states.to(rows.dtype)
        if self.is_output:
            hidden = states.index_select(-1, neurons)
            added = F.linear(hidden if scale is None else hidden * scale, rows.t())
            return result + added.to(result.dtype)
        added = F.linear(states, rows)
        return result.index_add(-1, neurons, (added if scale is None else added * scale).to(result.dtype))
