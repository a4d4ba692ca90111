"""The adapted FFN.

                     x ──┬───────────────────────────────┐
                         │                               │
               ┌─────────┴─────────┐           ┌─────────┴─────────┐
               │ gate_proj  W + ΔW │ · g       │ up_proj    W + ΔW │ · g       one gate g for each neuron (eq. 7, 8)
               └─────────┬─────────┘           └─────────┬─────────┘
                         └──── h = act(gate) · up ───────┘
                                       │ · m                                   m leaves neurons out (eq. 9)
                             ┌─────────┴─────────┐
                             │ down_proj  W + ΔW │
                             └─────────┬─────────┘
                                       y

ΔW of a projection is zero but for the general neurons and those specific to the languages of the sample's pair. The
FFN itself, its activation, dropout, residual and remote code, is the base's own: only its projections are replaced,
once, by `RoutedLinear` layers, which ask this layer what the call in progress makes of them.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from ..ffn import FFN
from ..neuron_map import NeuronMap
from ..routed.call import Call, Team, entered
from ..routed.layer import RoutedLayer, device_of
from ..routed.projection import Share
from ..routed.routing import Routing
from .deltas import NeuronBlocks
from .filling import keep_earlier, read_neuron_map
from .gates import neuron_gate, neurons_that_take_part, open_token_gates, opened
from .layout import GENERAL, BlockLayout


class LanderFFN(RoutedLayer):
    """Wraps the FFN of a base model, stored as `base_layer`, and reuses its forward.

    Args:
        ffn: The FFN, with its module.
        routing: What all adapted layers of the model share.
    """

    adapter_layer_names = ("lander_blocks",)

    def __init__(self, ffn: FFN, routing: Routing) -> None:
        super().__init__(ffn.module, routing)
        self.input_names, self.output_name = ffn.inputs, ffn.output
        self.neurons, self.width, self.fused = ffn.neurons, ffn.width, ffn.fused
        self.in_features = self.out_features = ffn.width
        self.lander_blocks = nn.ModuleDict()
        self._put_in_place()

    def update_layer(
        self,
        adapter_name: str,
        layout: BlockLayout,
        neuron_map: NeuronMap | None = None,
        layer: int = 0,
        init_weights: bool = True,
        inference_mode: bool = False,
    ) -> None:
        """Add an adapter, or give one other blocks; those that it keeps are the same tensors.

        Args:
            adapter_name: Its name.
            layout: Sizes and options of its blocks.
            neuron_map: Where neuron indices and awareness come from; None if they will be loaded, or are there.
            layer: Index of this FFN in the neuron map.
            init_weights: Whether the adapter starts without effect on the weights.
            inference_mode: Whether it stays frozen.
        """
        device, dtype = self.device_and_dtype()
        blocks = NeuronBlocks(layout, rows_of_neuron(self.ffn(adapter_name)), device, dtype, init_weights)
        if neuron_map is not None:
            read_neuron_map(blocks, neuron_map, layer)
        if self.holds(adapter_name):
            keep_earlier(blocks, self.blocks(adapter_name))
        self.lander_blocks[adapter_name] = blocks
        self.set_adapter(self.active_adapters, inference_mode=inference_mode)

    @property
    def projection_names(self) -> tuple[str, ...]:
        """Names of the FFN's linear layers, the output projection last."""
        return (*self.input_names, self.output_name)

    def ffn(self, name: str) -> FFN:
        """Describe the wrapped FFN, under a name."""
        names = (self.input_names, self.output_name)
        return FFN(name, self.base_layer, *names, self.width, self.neurons, self.fused)

    def blocks(self, adapter_name: str) -> NeuronBlocks:
        """Return the blocks of an adapter."""
        blocks = self.lander_blocks[adapter_name]
        assert isinstance(blocks, NeuronBlocks)
        return blocks

    def _opened(self, call: Call, teams: Sequence[Team], args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Call:
        for team in teams:
            if team.blocks.layout.car == "token":
                return self._with_token_gates(call, device_of(args, kwargs), args, kwargs)
        return call

    def share(self, projection: str, team: Team, states: torch.Tensor | None) -> Share:
        """Tell what a team's adapter makes of a projection; see [`RoutedLayer.share`]."""
        is_output = projection == self.output_name
        if isinstance(team, _Recorder):
            if is_output:
                assert states is not None
                team.seen = states
            return Share()
        team.met.add(projection)
        blocks, layout = team.blocks, team.blocks.layout
        # on a CPU in the deltas' own type; many have no instructions for half precision
        dtype = blocks.dtype if states is None or states.device.type == "cpu" else states.dtype
        updates = team.kept((projection, dtype), blocks.updates, projection, team, dtype)
        if team.token_gates is not None:
            updates = opened(updates, team.token_gates, GENERAL in blocks.tuned_on[projection])
        kind = torch.float32 if states is None else states.dtype
        if is_output:
            mask = neurons_that_take_part(blocks, team, kind) if layout.drops_neurons else None
            return Share(updates, mask=mask, folds=blocks.folds)
        gate = None if layout.car == "off" else neuron_gate(blocks, team, states)
        if gate is not None and self.fused > 1:
            gate = torch.cat([gate] * self.fused, dim=-1)
        return Share(updates, scale=gate, folds=blocks.folds)

    @torch.no_grad()
    def _with_token_gates(
        self, call: Call, device: torch.device, args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> Call:
        """Run the base FFN up to its output projection, and open each token's gates by the activations there."""
        recorder = _Recorder(call, None, (None,))
        with entered(call.with_teams(self, device, [recorder])):
            self.base_layer(*args, **kwargs)
        opened = [copy.copy(team) for team in call.teams(self, device)]
        for team in opened:
            if team.blocks.layout.car == "token":
                team.token_gates = open_token_gates(team.blocks, team, recorder.seen)
        return call.with_teams(self, device, opened)


class _Recorder(Team):
    """Stands in for teams whose adapters add nothing, and keeps the activations h (samples, tokens, p)."""

    seen: torch.Tensor


def rows_of_neuron(ffn: FFN) -> dict[str, int]:
    """Tell how many rows of every projection belong to a neuron, the output projection last."""
    return {**dict.fromkeys(ffn.inputs, ffn.fused), ffn.output: 1}
