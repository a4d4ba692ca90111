"""What one adapter holds for one FFN: blocks of neurons, their deltas, and what their gates need."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from ..neuron_map import NeuronMap
from .config import CarMode, InactiveNeurons, LanderConfig, Tune

GENERAL_BLOCK = "general"


@dataclass(frozen=True)
class BlockLayout:
    """Sizes and options of an adapter at one FFN; known before any weight is loaded.

    Attributes:
        neurons: p, number of neurons of the FFN.
        width: d, the model width.
        general: Number of language-general neurons.
        specific: Number of specific neurons of every language of the pairs.
        language_pairs: Pairs for which this FFN is relevant; empty where the adapter knows no pairs.
        partitioned: Whether a neuron map tells general from specific neurons; without one all are general.
    """

    neurons: int
    width: int
    general: int
    specific: Mapping[str, int] = field(default_factory=dict)
    language_pairs: tuple[str, ...] = ()
    partitioned: bool = False
    car: CarMode = "off"
    inactive_neurons: InactiveNeurons = "keep"
    tune: Tune = "pair"
    general_rank: int | None = None

    @classmethod
    def for_config(
        cls, config: LanderConfig, counts: Mapping[str, Any] | None, neurons: int, width: int
    ) -> BlockLayout:
        """The layout of an adapter at an FFN with p `neurons`, where a neuron map gave `counts` of them to blocks."""
        if counts is None:
            counts = {"general": neurons, "specific": {}, "language_pairs": config.language_pairs or ()}
        return cls(
            neurons=neurons,
            width=width,
            general=counts["general"],
            specific=dict(counts["specific"]),
            language_pairs=tuple(counts["language_pairs"]),
            partitioned=config.has_neuron_map and config.tune != "layers",
            car=config.car,
            inactive_neurons=config.inactive_neurons,
            tune=config.tune,
            general_rank=config.general_rank,
        )

    @property
    def tuned_blocks(self) -> tuple[str, ...]:
        """Blocks that have deltas: `general` and languages."""
        general = (GENERAL_BLOCK,) if self.general and self.tune != "specific" else ()
        return general + (tuple(self.specific) if self.tune in ("pair", "specific") else ())

    @property
    def drops_neurons(self) -> bool:
        """Whether specific neurons of languages outside the pair take no part."""
        return self.partitioned and self.inactive_neurons == "drop"

    def concerns(self, pair: str | None) -> bool:
        """Whether this FFN is adapted for a pair."""
        return not self.language_pairs or pair is None or pair in self.language_pairs

    def languages(self, pair: str | None) -> tuple[str, ...]:
        """Languages of `pair` that have specific neurons here."""
        parts = pair.split("-") if pair is not None else ()
        return tuple(language for language in self.specific if language in parts)


class NeuronBlocks(nn.Module):
    """Deltas of one adapter for one FFN.

    A block is the language-general neurons or those specific to one language. Every block has an int32 buffer
    `{block}_neurons` (n,), and for every projection a delta of n rows of width d, neuron by neuron: rows of an input
    projection, columns of the output projection. A projection that fuses gate and up projection has 2n, those of the
    gate first. A delta is a parameter `{block}_{projection}` (n, d), or, for the general block with `general_rank` r,
    the product of `{block}_{projection}_B` (n, r) and `{block}_{projection}_A` (r, d).

    Args:
        layout: Sizes and options.
        projections: Names of all projections of the FFN, each with the number of rows or columns of a neuron in it.
        device: Device of the parameters and buffers.
        dtype: Floating-point type of the parameters.
        init_weights: Whether the deltas start at zero; random otherwise.
    """

    def __init__(
        self,
        layout: BlockLayout,
        projections: Mapping[str, int],
        device: torch.device,
        dtype: torch.dtype,
        init_weights: bool = True,
    ) -> None:
        super().__init__()
        self.layout = layout
        self.projections = projections
        self.may_be_absent = False
        self._shared: set[str] = set()
        self._observed: dict[str, torch.Tensor] = {}
        for block, count in {GENERAL_BLOCK: layout.general, **layout.specific}.items():
            self.register_buffer(f"{block}_neurons", torch.arange(count, dtype=torch.int32, device=device))
        for block in layout.tuned_blocks:
            for projection in projections:
                self._add_delta(block, projection, device, dtype)
        pairs = len(layout.language_pairs)
        if layout.partitioned:
            self.register_buffer("awareness_sums", torch.zeros(pairs, 2, device=device))
        if layout.car == "token":
            self.register_buffer("mean_gradient", torch.zeros(pairs, layout.neurons, device=device))
            self.register_buffer("mean_token_awareness", torch.zeros(pairs, 2, device=device))
        if layout.car == "learned":
            gates = torch.zeros(max(pairs, 1), 2, layout.width + 1, device=device, dtype=dtype)
            self.gates = nn.Parameter(gates)
        if not init_weights:
            for parameter in self.parameters():
                nn.init.uniform_(parameter, -1 / math.sqrt(layout.width), 1 / math.sqrt(layout.width))

    def _add_delta(self, block: str, projection: str, device: torch.device, dtype: torch.dtype) -> None:
        count = int(self.get_buffer(f"{block}_neurons").shape[0]) * self.projections[projection]
        width, rank = self.layout.width, self.layout.general_rank
        if block != GENERAL_BLOCK or rank is None:
            rows = torch.zeros(count, width, device=device, dtype=dtype)
            self.register_parameter(f"{block}_{projection}", nn.Parameter(rows))
            return
        factor_a = torch.empty(rank, width, device=device, dtype=dtype)
        nn.init.kaiming_uniform_(factor_a, a=math.sqrt(5))
        self.register_parameter(f"{block}_{projection}_A", nn.Parameter(factor_a))
        factor_b = torch.zeros(count, rank, device=device, dtype=dtype)
        self.register_parameter(f"{block}_{projection}_B", nn.Parameter(factor_b))

    def is_low_rank(self, block: str) -> bool:
        return block == GENERAL_BLOCK and self.layout.general_rank is not None

    def neurons(self, block: str, projection: str | None = None) -> torch.Tensor:
        """Indices of a block's neurons, or of their rows (columns) in a projection: int64 (n,)."""
        neurons = self.get_buffer(f"{block}_neurons").long()
        parts = 1 if projection is None else self.projections[projection]
        return neurons if parts == 1 else torch.cat([neurons + part * self.layout.neurons for part in range(parts)])

    def rows(self, block: str, projection: str) -> torch.Tensor:
        """Delta rows of a block: (n, d); twice as many where a projection fuses two."""
        if self.is_low_rank(block):
            factor_a, factor_b = self.factors(block, projection)
            return factor_b @ factor_a
        return self.get_parameter(f"{block}_{projection}")

    def factors(self, block: str, projection: str) -> tuple[torch.Tensor, torch.Tensor]:
        """Low-rank factors A (r, d) and B (n, r) of a block's delta rows B A."""
        return self.get_parameter(f"{block}_{projection}_A"), self.get_parameter(f"{block}_{projection}_B")

    def rows_beside_factors(self) -> list[nn.Parameter]:
        """Delta rows, where the general block is a product of two factors; none where there are no factors."""
        if not (self.is_low_rank(GENERAL_BLOCK) and GENERAL_BLOCK in self.layout.tuned_blocks):
            return []
        specific = [block for block in self.layout.tuned_blocks if block != GENERAL_BLOCK]
        return [self.get_parameter(f"{block}_{name}") for block in specific for name in self.projections]

    def pair_index(self, pair: str | None) -> int:
        """Row of a pair in the tensors that have one row per pair."""
        return self.layout.language_pairs.index(pair) if pair in self.layout.language_pairs else 0

    @torch.no_grad()
    def read_neuron_map(self, neuron_map: NeuronMap, layer: int) -> None:
        """Copy neuron indices and awareness of a layer from the map."""
        if self.layout.tune != "layers":
            self.get_buffer(f"{GENERAL_BLOCK}_neurons").copy_(neuron_map.general(layer))
        for language in self.layout.specific:
            self.get_buffer(f"{language}_neurons").copy_(neuron_map.specific(layer, language))
        entry = neuron_map.neurons[layer]
        for index, pair in enumerate(self.layout.language_pairs):
            if "awareness_sums" in self._buffers:
                self.get_buffer("awareness_sums")[index] = torch.tensor(neuron_map.awareness_sums(layer, pair))
            if self.layout.car == "token":
                languages = [neuron_map.languages.index(language) for language in pair.split("-")]
                gradient = entry.mean_gradient[languages].mean(dim=0)
                awareness = gradient.abs() * entry.mean_abs_activation[languages].mean(dim=0)
                self.get_buffer("mean_gradient")[index] = gradient
                specific = [awareness[neuron_map.specific(layer, language)].sum() for language in pair.split("-")]
                sums = torch.stack([torch.stack(specific).sum(), awareness[neuron_map.general(layer)].sum()])
                self.get_buffer("mean_token_awareness")[index] = sums

    def share_with(self, other: NeuronBlocks) -> None:
        """Use the memory of another adapter's frozen tensors wherever the values are the same."""
        theirs = {**dict(other.named_parameters()), **dict(other.named_buffers())}
        for name, tensor in (*self.named_parameters(), *self.named_buffers()):
            twin = theirs.get(name)
            if twin is None or name in self._shared or tensor.requires_grad or twin.requires_grad:
                continue
            alike = (twin.shape, twin.dtype, twin.device) == (tensor.shape, tensor.dtype, tensor.device)
            if alike and not tensor.is_meta and torch.equal(twin, tensor):
                tensor.data = twin.data
                self._shared.add(name)
                other._shared.add(name)

    def own_tensors(self) -> None:
        """Take copies of the tensors whose memory other adapters use too, because these are about to change."""
        for name, tensor in (*self.named_parameters(), *self.named_buffers()):
            if name in self._shared:
                tensor.data = tensor.data.clone()
        self._shared.clear()

    def own_trainable_tensors(self) -> None:
        """Take copies before a pass whose gradients may change the adapter."""
        if self._shared and torch.is_grad_enabled() and any(weight.requires_grad for weight in self.parameters()):
            self.own_tensors()

    def _load_from_state_dict(
        self,
        state_dict: Mapping[str, Any],
        prefix: str,
        local_metadata: Mapping[str, Any],
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        """Report nothing missing where another adapter is loaded; PEFT tells adapters apart by parts of names."""
        if not self.may_be_absent or any(key.startswith(prefix) for key in state_dict):
            self.own_tensors()
            super()._load_from_state_dict(
                state_dict, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs
            )

    def group_masks(self, pair: str | None) -> tuple[torch.Tensor, torch.Tensor]:
        """Which of the p neurons are general, and which are specific to the pair's languages: two bool (p,)."""
        device = self.get_buffer(f"{GENERAL_BLOCK}_neurons").device
        masks = torch.zeros(2, self.layout.neurons, dtype=torch.bool, device=device)
        masks[0, self.neurons(GENERAL_BLOCK)] = True
        for language in self.layout.languages(pair):
            masks[1, self.neurons(language)] = True
        return masks[0], masks[1]

    @torch.no_grad()
    def observe_gates(
        self, pairs: Sequence[str | None], pair_of_sample: torch.Tensor | None, gates: torch.Tensor
    ) -> None:
        """Remember the mean gates of a training batch, for [`take_observed_gates`].

        Args:
            pairs: Distinct pairs of the samples.
            pair_of_sample: (n,); for each sample the index of its pair in `pairs`; None for a single pair.
            gates: (n, ..., 2); general and specific, of every token, padding included.
        """
        if not self.training or torch.compiler.is_compiling():
            return
        of_sample = gates.detach().float().reshape(gates.shape[0], -1, 2).mean(dim=1)
        counted = torch.cat([of_sample, torch.ones_like(of_sample[:, :1])], dim=1)
        for index, pair in enumerate(pairs):
            if pair is not None:
                chosen = counted if pair_of_sample is None else counted * (pair_of_sample == index).unsqueeze(1)
                seen = self._observed.get(pair)
                self._observed[pair] = chosen.sum(dim=0) if seen is None else seen + chosen.sum(dim=0)

    def take_observed_gates(self) -> dict[str, tuple[float, float]]:
        """Mean gates (general, specific) by pair over the samples that were trained on since the last call."""
        sums = {pair: tensor.tolist() for pair, tensor in self._observed.items()}
        self._observed.clear()
        return {pair: (general / count, specific / count) for pair, (general, specific, count) in sums.items()}

    def extra_repr(self) -> str:
        parts: dict[str, Any] = {"general": self.layout.general, **self.layout.specific, "of": self.layout.neurons}
        return ", ".join(f"{key}={value}" for key, value in parts.items())
