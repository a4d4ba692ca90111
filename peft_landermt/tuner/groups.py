"""The samples of a call that one adapter serves at one FFN, and the gates and masks that routing makes for them."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch

from ..errors import ConfigError
from .blocks import GENERAL_BLOCK, BlockLayout, NeuronBlocks
from .routing import Rows, constant_gates, learned_gates, token_gates


@dataclass
class Group:
    """Samples of one adapter in one call of an FFN, and what routing makes of them.

    Attributes:
        rows: Which samples.
        blocks: The adapter's blocks at this FFN.
        delta_gates: (n, ..., 2) gates on what the adapter adds, general and specific; with `car="token"` only.
        languages: Languages whose specific neurons at least one sample uses.
        specific_blocks: Those of them that have deltas.
    """

    rows: Rows
    blocks: NeuronBlocks
    delta_gates: torch.Tensor | None = None
    languages: tuple[str, ...] = field(init=False)
    specific_blocks: tuple[str, ...] = field(init=False)
    _specific: dict[tuple[int, torch.dtype, int], torch.Tensor | None] = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        layout = self.blocks.layout
        named = {language for pair in self.rows.pairs for language in layout.languages(pair)}
        self.languages = tuple(language for language in layout.specific if language in named)
        tuned = layout.tuned_blocks
        self.specific_blocks = tuple(language for language in self.languages if language in tuned)

    def folded_blocks(self) -> tuple[str, ...]:
        """Blocks whose deltas can join the weight, because they hold for every token of the group."""
        layout = self.blocks.layout
        if self.delta_gates is not None or GENERAL_BLOCK not in layout.tuned_blocks or layout.general_rank is not None:
            return ()
        return (GENERAL_BLOCK, *(self.specific_blocks if self.rows.pair_of_sample is None else ()))

    def take(self, tensor: torch.Tensor) -> torch.Tensor:
        """The group's samples of (N, ...)."""
        return tensor if self.rows.samples is None else tensor.index_select(0, self.rows.samples)

    def put(self, tensor: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
        """(N, ...) with the group's samples replaced."""
        return values if self.rows.samples is None else tensor.index_copy(0, self.rows.samples, values)

    def per_sample(self, by_pair: torch.Tensor, dim: int) -> torch.Tensor:
        """One row of (pairs, ...) for every sample, with axes of size 1 after the first to make `dim` axes."""
        if self.rows.pair_of_sample is None:
            return by_pair[0]
        chosen = by_pair[self.rows.pair_of_sample]
        return chosen.reshape(chosen.shape[0], *[1] * (dim - chosen.dim()), *chosen.shape[1:])

    def masks(self, dim: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Masks (..., p) of the general and of each sample's specific neurons, to broadcast over `dim` axes."""
        masks = [self.blocks.group_masks(pair) for pair in self.rows.pairs]
        general, specific = (torch.stack(kind) for kind in zip(*masks, strict=True))
        return self.per_sample(general, dim), self.per_sample(specific, dim)

    def input_gate(self, states: torch.Tensor) -> torch.Tensor | None:
        """Gate g on the input projections' outputs: (..., p), or None where it is 1 everywhere.

        Args:
            states: (n, ..., d); the input x of the group's samples.
        """
        car = self.blocks.layout.car
        if car in ("off", "token"):
            return None
        general, specific = self.masks(states.dim())
        if car == "learned":
            indices = [self.blocks.pair_index(pair) for pair in self.rows.pairs]
            by_pair = self.blocks.gates[indices]
            chosen = by_pair[0] if self.rows.pair_of_sample is None else by_pair[self.rows.pair_of_sample]
            gates = learned_gates(states, chosen)
            self.blocks.observe_gates(self.rows.pairs, self.rows.pair_of_sample, gates)
            offset = gates - 1
            return (1 + offset[..., :1] * general + offset[..., 1:] * specific).to(states.dtype)
        sums = self.blocks.get_buffer("awareness_sums")[[self.blocks.pair_index(pair) for pair in self.rows.pairs]]
        values = torch.stack(constant_gates(car, sums[:, 0], sums[:, 1]), dim=-1)
        gates = self.per_sample(values, states.dim())
        return (1 + (gates[..., :1] - 1) * general + (gates[..., 1:] - 1) * specific).to(states.dtype)

    def hidden_mask(self, hidden: torch.Tensor) -> torch.Tensor | None:
        """Mask of the neurons that take part: (..., p), or None where all do."""
        if not self.blocks.layout.drops_neurons:
            return None
        general, specific = self.masks(hidden.dim())
        return (general | specific).to(hidden.dtype)

    def set_delta_gates(self, base_activation: torch.Tensor) -> None:
        """Gates of `car="token"` from the base FFN's activations h (N, ..., p)."""
        hidden = self.take(base_activation)
        indices = [self.blocks.pair_index(pair) for pair in self.rows.pairs]
        gradient = self.per_sample(self.blocks.get_buffer("mean_gradient")[indices], hidden.dim())
        awareness = self.per_sample(self.blocks.get_buffer("mean_token_awareness")[indices], hidden.dim())
        general, specific = self.masks(hidden.dim())
        self.delta_gates = token_gates(hidden, gradient, general, specific, awareness)
        self.blocks.observe_gates(self.rows.pairs, self.rows.pair_of_sample, self.delta_gates)

    def specific_mask(self, like: torch.Tensor, parts: int = 1) -> torch.Tensor | None:
        """Which of the concatenated specific neurons each sample uses: (n, 1, ..., s); None where all do.

        Args:
            parts: Rows of each neuron.
        """
        key = (parts, like.dtype, like.dim())
        if key not in self._specific:
            self._specific[key] = self._make_specific_mask(like, parts)
        return self._specific[key]

    def _make_specific_mask(self, like: torch.Tensor, parts: int) -> torch.Tensor | None:
        if self.rows.pair_of_sample is None:
            return None
        rows = [
            torch.cat(
                [
                    like.new_full(
                        (parts * self.blocks.layout.specific[block],),
                        float(block in self.blocks.layout.languages(pair)),
                    )
                    for block in self.specific_blocks
                ]
            )
            for pair in self.rows.pairs
        ]
        return self.per_sample(torch.stack(rows), like.dim())

    def delta_gate(self, block: str, like: torch.Tensor) -> torch.Tensor | None:
        if self.delta_gates is None:
            return None
        return self.delta_gates[..., : 1 if block == GENERAL_BLOCK else None][..., -1:].to(like.dtype)


def check_additive(layouts: list[tuple[str, BlockLayout]]) -> None:
    """Several adapters at once mean the sum of their deltas, so none may have gates or drop neurons.

    Raises:
        ConfigError: If one does.
    """
    for name, layout in layouts:
        if layout.car != "off" or layout.drops_neurons:
            raise ConfigError(
                "active_adapters",
                [adapter for adapter, _ in layouts],
                f"adapter {name!r} routes neurons (car={layout.car!r}, inactive_neurons={layout.inactive_neurons!r}), "
                "so it cannot be combined with others; activate one adapter at a time.",
            )
