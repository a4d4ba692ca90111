"""Conditional awareness-based routing (CAR): how far general and specific neurons are opened (eq. 6 to 9)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch

from ..neuron_map import Number, conditional_awareness
from ..routed.call import Team
from ..routed.projection import Update
from .deltas import NeuronBlocks
from .layout import CONSTANT


def constant_gates(mode: str, specific: Number, general: Number) -> tuple[Number, Number]:
    """Compute gates of the general and of the specific neurons that do not depend on the input (eq. 7, 8).

    Args:
        mode: `"paper"`: general neurons get CAR, specific ones 1 - CAR. `"proportional"`: the two exchanged.
        specific: Sum of Phi over the pair's specific neurons.
        general: Sum of Phi over the general neurons. Both are numbers, or tensors of one shape.

    Returns:
        (general gate, specific gate).
    """
    car = conditional_awareness(specific, general)
    return (car, 1 - car) if mode == "paper" else (1 - car, car)


def learned_gates(hidden_states: torch.Tensor, gates: torch.Tensor) -> torch.Tensor:
    """Compute token-conditional gates 2 · sigmoid(w · x_t + b), one for each group of neurons; 1 where w and b are 0.

    Args:
        hidden_states: (N, ..., d); x.
        gates: (2, d + 1) for all samples, or (N, 2, d + 1); w, then b, for the general and the specific group.

    Returns:
        (N, ..., 2) in the type of `gates`.
    """
    states = hidden_states.to(gates.dtype)
    weight, bias = gates[..., :-1], gates[..., -1]
    if gates.dim() == 2:
        return 2 * torch.sigmoid(states @ weight.t() + bias)
    shape = states.shape
    flat = states.reshape(shape[0], -1, shape[-1])
    scores = flat @ weight.transpose(1, 2) + bias.unsqueeze(1)
    return 2 * torch.sigmoid(scores).reshape(*shape[:-1], 2)


def token_gates(
    activation: torch.Tensor,
    mean_gradient: torch.Tensor,
    general: torch.Tensor,
    specific: torch.Tensor,
    mean_awareness: torch.Tensor,
) -> torch.Tensor:
    """Compute each token's CAR relative to its calibration mean (eq. 6; Phi(i) is | mean gradient_i · h_i(x_t) |).

    Args:
        activation: (N, ..., p); h of the base FFN.
        mean_gradient: (p,) or (N, 1, ..., p).
        general: Mask of the general neurons, 0 or 1, shaped like `mean_gradient`.
        specific: Mask of the pair's specific neurons, likewise.
        mean_awareness: (2,) or (N, 1, ..., 2); calibration means of the specific and of the general sum.

    Returns:
        float32 (N, ..., 2): CAR(t) / mean CAR for general neurons, (1 - CAR(t)) / (1 - mean CAR) for specific ones.
    """
    phi = (activation.float() * mean_gradient).abs()
    specific_sum, general_sum = (phi * specific).sum(dim=-1), (phi * general).sum(dim=-1)
    smallest = torch.finfo(torch.float32).tiny
    car = specific_sum / (specific_sum + general_sum).clamp_min(smallest)
    mean_car = mean_awareness[..., 0] / mean_awareness.sum(dim=-1).clamp_min(smallest)
    ratios = (car / mean_car.clamp_min(smallest), (1 - car) / (1 - mean_car).clamp_min(smallest))
    return torch.where(mean_car.unsqueeze(-1) > 0, torch.stack(ratios, dim=-1), torch.ones_like(car).unsqueeze(-1))


def gates_of_pair(blocks: NeuronBlocks, pair: str | None) -> tuple[float, float]:
    """Return the gates of the general and of a pair's specific neurons, where they do not depend on the input."""
    if blocks.layout.car not in CONSTANT:
        return 1.0, 1.0
    return constant_gates(blocks.layout.car, *blocks.get_buffer("awareness_sums")[blocks.pair_index(pair)].tolist())


def neuron_gate(blocks: NeuronBlocks, team: Team, states: torch.Tensor | None) -> torch.Tensor | None:
    """Compute the gate of every neuron of an FFN (eq. 7, 8), which scales what the input projections give.

    Args:
        blocks: The adapter's blocks at the FFN.
        team: Samples and their pairs.
        states: x, (samples, tokens, d); None to merge.

    Returns:
        (p,) or (n, 1 or tokens, p); None where every gate is 1.
    """
    car = blocks.layout.car
    if car in CONSTANT:
        dtype = torch.float32 if states is None else states.dtype
        return team.once(("gate", dtype), _constant_neuron_gate, blocks, team, dtype)
    if car != "learned" or states is None:
        return None
    chosen = team.take(states)
    by_pair = blocks.gates_of(team.pairs)
    gates = learned_gates(chosen, by_pair[0] if team.of_sample is None else by_pair[team.of_sample])
    blocks.observe_gates(team, gates)
    general, specific = group_masks(blocks, team)
    offset = gates - 1
    return (1 + offset[..., :1] * general + offset[..., 1:] * specific).to(states.dtype)


def _constant_neuron_gate(blocks: NeuronBlocks, team: Team, dtype: torch.dtype) -> torch.Tensor:
    sums = blocks.get_buffer("awareness_sums")[[blocks.pair_index(pair) for pair in team.pairs]]
    gates = team.spread(torch.stack(constant_gates(blocks.layout.car, sums[:, 0], sums[:, 1]), dim=-1))
    general, specific = group_masks(blocks, team)
    # where and not a sum: 1 + (0.05 - 1) is not 0.05 in half precision
    gate = torch.where(general, gates[..., :1], torch.where(specific, gates[..., 1:], torch.ones_like(gates[..., :1])))
    return gate.to(dtype)


def open_token_gates(blocks: NeuronBlocks, team: Team, activation: torch.Tensor) -> torch.Tensor:
    """Compute the gates of `car="token"` on what the adapter adds, general and specific: (n, tokens, 2).

    Args:
        blocks: The adapter's blocks at the FFN.
        team: Samples and their pairs.
        activation: h of the base FFN, (samples, tokens, p).
    """
    indices = [blocks.pair_index(pair) for pair in team.pairs]
    means = (team.spread(blocks.get_buffer(name)[indices]) for name in ("mean_gradient", "mean_token_awareness"))
    gradient, awareness = means
    gates = token_gates(team.take(activation), gradient, *group_masks(blocks, team), awareness)
    blocks.observe_gates(team, gates)
    return gates


def group_masks(blocks: NeuronBlocks, team: Team) -> tuple[torch.Tensor, torch.Tensor]:
    """Tell which neurons are general, and which specific to each sample's pair: two bool (p,) or (n, 1, p)."""
    return team.once("masks", _group_masks, blocks, team)


def _group_masks(blocks: NeuronBlocks, team: Team) -> tuple[torch.Tensor, torch.Tensor]:
    general, specific = zip(*[blocks.group_masks(pair) for pair in team.pairs], strict=True)
    return team.spread(torch.stack(general)), team.spread(torch.stack(specific))


def neurons_that_take_part(blocks: NeuronBlocks, team: Team, dtype: torch.dtype) -> torch.Tensor:
    """Make the mask of the neurons that are not dropped (eq. 9): (p,) or (n, 1, p)."""
    return team.once(("mask", dtype), lambda: torch.logical_or(*group_masks(blocks, team)).to(dtype))


def opened(updates: Sequence[Update], gates: torch.Tensor, with_general: bool) -> tuple[Update, ...]:
    """Multiply updates by each token's gate on what the adapter adds.

    Args:
        updates: Of the general neurons, where `with_general`, then of the specific ones.
        gates: (n, tokens, 2), general and specific.
        with_general: Whether there is one of the general neurons.
    """
    result = []
    for index, update in enumerate(updates):
        side = 0 if with_general and index == 0 else 1
        gate = gates[..., side : side + 1].to(update.dtype)
        result.append(replace(update, scale=gate if update.scale is None else update.scale * gate))
    return tuple(result)
