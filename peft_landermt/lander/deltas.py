"""What one adapter holds for one FFN: blocks of neurons, their deltas, and what their gates need."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import chain
from typing import Any

import torch
from torch import nn

from ..errors import ConfigError
from ..routed.blocks import GATES, READING, WRITING, Blocks
from ..routed.call import Team
from ..routed.projection import Update
from .layout import GENERAL, INPUT_DEPENDENT, BlockLayout
from .value_checks import check_neurons, check_ranges

ROW_PER_PAIR = ("gates", "awareness_sums", "mean_gradient", "mean_token_awareness")
"""Tensors that have one row for each pair: what gates are made of. `gates` has none for pairs with gates of their
own."""

OWN_GATES = "gates_"
"""What names of the learned gates of one added or composed pair begin with."""


def is_row_per_pair(name: str) -> bool:
    """Tell whether a tensor is what gates are made of."""
    return name in ROW_PER_PAIR or name.startswith(OWN_GATES)


class NeuronBlocks(Blocks):
    """Deltas of one adapter for one FFN.

    A block is the language-general neurons or those specific to one language. Every block has an int32 buffer
    `{block}_neurons` (n,), and for every projection a delta of n rows of width d, neuron by neuron: rows of an input
    projection, columns of the output projection. A projection that fuses gate and up projection has 2n, those of the
    gate first. A delta is a parameter `{block}_{projection}` (n, d), or, for a block of rank r, the product of
    `{block}_{projection}_B` (n, r) and `{block}_{projection}_A` (r, d). As in LoRA, the factor that reads a
    projection's input starts at random, and the one that writes to its output at zero: A and B of an input projection,
    B and A of the output projection, whose input the neurons are.

    The block of a language that was added later may be on general neurons too, `{block}_general_neurons` (m,), whose
    rows follow those of its own.

    Args:
        layout: Sizes and options.
        projections: Names of all projections of the FFN, the output projection last, each with the number of rows or
            columns of a neuron in it.
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
        self.projections: Mapping[str, int] = projections
        self.output = list(projections)[-1]
        chosen = {"all": list(projections), "input": list(projections)[:-1], "output": [self.output]}
        self.tuned_on = {
            projection: tuple(
                block for block in layout.tuned_blocks if projection in chosen[layout.form(block).projections]
            )
            for projection in projections
        }
        # whole rows of the general neurons are so many that they are better added to the weight than multiplied apart
        self.folds = GENERAL in layout.tuned_blocks and layout.rank(GENERAL) is None
        self.pairs = layout.language_pairs
        self.languages: dict[str | None, tuple[str, ...]] = {
            pair: layout.languages(pair) for pair in layout.language_pairs
        }
        self.ranks = {block: layout.rank(block) for block in layout.tuned_blocks}
        self._observed: dict[str, torch.Tensor] = {}
        for block, count in {GENERAL: layout.general, **layout.specific}.items():
            self.register_buffer(f"{block}_neurons", torch.arange(count, dtype=torch.int32, device=device))
        for block, count in layout.on_general.items():
            self.register_buffer(f"{block}_general_neurons", torch.arange(count, dtype=torch.int32, device=device))
        for block in layout.tuned_blocks:
            for projection in (name for name, blocks in self.tuned_on.items() if block in blocks):
                self._add_delta(block, projection, device, dtype)
        pairs = len(layout.language_pairs)
        if layout.partitioned:
            self.register_buffer("awareness_sums", torch.zeros(pairs, 2, device=device))
        if layout.car == "token":
            self.register_buffer("mean_gradient", torch.zeros(pairs, layout.neurons, device=device))
            self.register_buffer("mean_token_awareness", torch.zeros(pairs, 2, device=device))
        if layout.car == "learned":
            sizes = {"gates": max(pairs, 1) - len(layout.own_gates)}
            for name, rows in {**sizes, **{f"{OWN_GATES}{pair}": 1 for pair in layout.own_gates}}.items():
                if rows:
                    zeros = torch.zeros(rows, 2, layout.width + 1, device=device, dtype=dtype)
                    self.register_parameter(name, nn.Parameter(zeros))
        owners = {
            f"{block}_{projection}{factor}": block
            for projection, blocks in self.tuned_on.items()
            for block in blocks
            for factor in ("", "_A", "_B")
        } | {f"{OWN_GATES}{pair}": pair for pair in layout.own_gates}
        self.frozen = frozenset(name for name in self._parameters if not layout.is_trained(owners.get(name, name)))
        if not init_weights:
            for parameter in self.parameters():
                nn.init.uniform_(parameter, -1 / math.sqrt(layout.width), 1 / math.sqrt(layout.width))

    def _add_delta(self, block: str, projection: str, device: torch.device, dtype: torch.dtype) -> None:
        count = len(self.placed(block)) * self.projections[projection]
        width, rank = self.layout.width, self.layout.rank(block)
        if rank is None:
            rows = torch.zeros(count, width, device=device, dtype=dtype)
            self.register_parameter(f"{block}_{projection}", nn.Parameter(rows))
            return
        for side, shape in (("A", (rank, width)), ("B", (count, rank))):
            factor = nn.Parameter(torch.zeros(shape, device=device, dtype=dtype))
            name = f"{block}_{projection}_{side}"
            self.register_parameter(name, factor)
            if self.kind(name) == READING:
                # as LoRA's A on the whole projection, of whose inputs the block has some
                bound = 1 / math.sqrt(width if side == "A" else self.layout.neurons)
                nn.init.uniform_(factor, -bound, bound)

    def kind(self, parameter: str) -> str:
        """Tell what a parameter is, by its name: of the output projection, B reads and A writes."""
        if parameter.startswith(GATES):
            return GATES
        kind = super().kind(parameter)
        is_output = parameter[:-2].endswith(f"_{self.output}")
        return {READING: WRITING, WRITING: READING}.get(kind, kind) if is_output else kind

    # What the blocks hold

    def neurons(self, block: str) -> torch.Tensor:
        """Return the indices of a block's neurons: int64 (n,)."""
        return self.get_buffer(f"{block}_neurons").long()

    def placed(self, block: str) -> torch.Tensor:
        """Return the indices of the neurons that a block's deltas are on, general ones last: int64 (n,)."""
        own = self.neurons(block)
        if block not in self.layout.on_general:
            return own
        return torch.cat([own, self.get_buffer(f"{block}_general_neurons").long()])

    def places(self, block: str, parts: int) -> torch.Tensor:
        """Return the rows (columns) of a block's neurons in a projection that has `parts` rows for each: int64 (parts
        · n,)."""
        neurons = self.placed(block)
        return neurons if parts == 1 else torch.cat([neurons + part * self.layout.neurons for part in range(parts)])

    def rows(self, block: str, projection: str) -> torch.Tensor:
        """Return the delta rows of a block: (n, d); twice as many where a projection fuses two."""
        if self.layout.rank(block) is None:
            return self.get_parameter(f"{block}_{projection}")
        factor_a, factor_b = self.factors(block, projection)
        return factor_b @ factor_a

    def factors(self, block: str, projection: str) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the low-rank factors A (r, d) and B (n, r) of a block's delta rows B A."""
        return self.get_parameter(f"{block}_{projection}_A"), self.get_parameter(f"{block}_{projection}_B")

    @torch.no_grad()
    def copy_block(self, language: str, earlier: str) -> None:
        """Give an added language's deltas the values of an earlier block's, the first components where it has more; 0
        on neurons that only the new one has."""
        for projection, tuned in self.tuned_on.items():
            if not {language, earlier} <= set(tuned):
                continue
            parts, rank = self.projections[projection], self.ranks[language]
            for side in ("",) if rank is None else ("_A", "_B"):
                own, other = (self.get_parameter(f"{block}_{projection}{side}") for block in (language, earlier))
                if side == "_A":
                    own[: len(other)] = other[:rank]
                    continue
                of_all = other.new_zeros(self.layout.neurons * parts, other.shape[1])  # rows are those of neurons
                of_all[self.places(earlier, parts)] = other
                own[:, : other.shape[1]] = of_all[self.places(language, parts), : own.shape[1]]

    def group_masks(self, pair: str | None) -> tuple[torch.Tensor, torch.Tensor]:
        """Tell which of the p neurons are general, and which are specific to the pair's languages: two bool (p,). A
        general neuron that was given to an added language is specific to its pairs, and general to others."""
        device = self.get_buffer(f"{GENERAL}_neurons").device
        masks = torch.zeros(2, self.layout.neurons, dtype=torch.bool, device=device)
        masks[0, self.neurons(GENERAL)] = True
        for language in self.languages.get(pair, ()):
            masks[1, self.neurons(language)] = True
        return masks[0] & ~masks[1], masks[1]

    def pair_index(self, pair: str | None) -> int:
        """Return the row of a pair in the tensors that have one row per pair."""
        return self.layout.language_pairs.index(pair) if pair in self.layout.language_pairs else 0

    def gates_of(self, pairs: Sequence[str | None]) -> torch.Tensor:
        """Return the learned gates of pairs: (pairs, 2, d + 1)."""
        own = self.layout.own_gates
        first = [pair for pair in self.layout.language_pairs if pair not in own]
        rows = [first.index(pair) if pair in first else 0 for pair in pairs]
        if not any(pair in own for pair in pairs):
            return self.get_parameter("gates")[rows]
        names = [f"{OWN_GATES}{pair}" if pair in own else "gates" for pair in pairs]
        rows = [0 if pair in own else row for pair, row in zip(pairs, rows, strict=True)]
        return torch.stack([self.get_parameter(name)[row] for name, row in zip(names, rows, strict=True)])

    # What they make of a projection

    @property
    def not_additive(self) -> str | None:
        """Why deltas of other adapters cannot be added to these: gates and dropped neurons are not a sum."""
        layout = self.layout
        if layout.car == "off" and not layout.drops_neurons:
            return None
        return f"routes neurons (car={layout.car!r}, inactive_neurons={layout.inactive_neurons!r})"

    def check_mergeable(self, adapter_name: str) -> None:
        """Raise ConfigError where a gate depends on the input."""
        if (car := self.layout.car) in INPUT_DEPENDENT:
            problem = f"the gate of adapter {adapter_name!r} depends on the input, so it cannot be merged"
            remedy = "keep the adapter active, or train one with car='off', 'paper' or 'proportional'."
            raise ConfigError("car", car, f"{problem} into the weights; {remedy}")

    def updates(self, projection: str, team: Team, dtype: torch.dtype) -> tuple[Update, ...]:
        """List the summands of ΔW of a projection for a team: the general block, then the languages of its pairs; all
        low-rank ones are one, where no token opens gates.

        Args:
            projection: Its name.
            team: Samples and their pairs.
            dtype: Type to multiply in.
        """
        tuned, parts, updates = self.tuned_on[projection], self.projections[projection], []
        values: dict[str, torch.Tensor] = self._parameters  # type: ignore[assignment]
        is_output = projection == self.output
        for blocks, place, scale in team.once((tuned, parts, dtype), self._used_blocks, tuned, team, parts, dtype):
            names = [f"{block}_{projection}" for block in blocks]
            if self.ranks[blocks[0]] is None:
                rows = values[names[0]] if len(names) == 1 else torch.cat([values[name] for name in names])
                rows = rows.to(dtype)
                by_row = Update(rows, place=place, scale=scale)
                updates.append(Update(up=rows.t(), pick=place, scale=scale) if is_output else by_row)
                continue
            factor_a, own = values[f"{names[0]}_A"], values[f"{names[0]}_B"]
            if len(names) > 1:
                factor_a = torch.cat([values[f"{name}_A"] for name in names])
                own = torch.block_diag(*[values[f"{name}_B"] for name in names])
            # zero rows for other neurons: one product in place of a product and a scattered sum
            empty = own.new_zeros(self.layout.neurons * parts, own.shape[1], dtype=dtype)
            # blocks of added languages may be on neurons of the general one, and of one another
            put = empty.index_copy if len(blocks) == 1 else empty.index_add
            down, up = factor_a.to(dtype), put(0, place, own.to(dtype))
            down, up = (up.t(), down.t()) if is_output else (down, up)
            updates.append(Update.low_rank(down, up, scale=scale))
        return tuple(updates)

    def _used_blocks(
        self, tuned: tuple[str, ...], team: Team, parts: int, dtype: torch.dtype
    ) -> list[tuple[list[str], torch.Tensor, torch.Tensor | None]]:
        """Of tuned blocks those that some sample uses, those of one form together, with their rows (columns) of a
        projection (n,) and, where not all are 1, the weights of rows or ranks: (n, 1, rows), or (rows,)."""
        used = {language for pair in team.pairs for language in self.languages.get(pair, ())}
        languages = [block for block in tuned if block in used]
        in_rows = [language for language in languages if self.ranks[language] is None]
        in_factors = [language for language in languages if self.ranks[language] is not None]
        groups = [in_rows, in_factors]
        if GENERAL in tuned:
            joins = self.ranks[GENERAL] is not None and self.layout.car not in INPUT_DEPENDENT
            groups = [in_rows, [GENERAL, *in_factors]] if joins else [[GENERAL], *groups]
        found: list[tuple[list[str], torch.Tensor, torch.Tensor | None]] = []
        for blocks in filter(None, groups):
            places = [self.places(each, parts) for each in blocks]
            weights = tuple(
                tuple(chain.from_iterable(self._weights(each, pair, tuned) for each in blocks)) for pair in team.pairs
            )
            scale = None
            if any(weight != 1 for row in weights for weight in row):
                widths = [self._widths(each, len(place)) for each, place in zip(blocks, places, strict=True)]
                scale = team.weigh(weights, tuple(chain.from_iterable(widths)), dtype, places[0].device)
            found.append((blocks, torch.cat(places), scale))
        return found

    def _weights(self, block: str, pair: str | None, tuned: tuple[str, ...]) -> tuple[int, ...]:
        """Weights of a block for a pair, in a projection that some blocks are on; see [`BlockLayout.weights`]."""
        return self.layout.weights(block, [each for each in self.languages.get(pair, ()) if each in tuned], self.ranks)

    def _widths(self, block: str, rows: int) -> tuple[int, ...]:
        """How many ranks (rows) each weight of a block is of."""
        rank = self.ranks[block]
        return (1,) * rank if block == GENERAL and rank is not None else (rank or rows,)

    # Loading, logging, printing

    def check_values(self, prefix: str, state: Mapping[str, torch.Tensor]) -> None:
        """Check that indices name neurons, that every neuron has one owner, and that gates can be made."""
        indices = [name for name in self._buffers if name.endswith("_neurons")]
        check_neurons(prefix, {name: state[f"{prefix}{name}"].long().cpu() for name in indices}, self.layout)
        check_ranges(prefix, {name: state[f"{prefix}{name}"] for name in self._buffers if f"{prefix}{name}" in state})

    @torch.no_grad()
    def observe_gates(self, team: Team, opened: torch.Tensor) -> None:
        """Remember the mean gates (n, tokens, 2) of a training batch, padding included, for `take_observed_gates`."""
        if not self.training or torch.compiler.is_compiling():
            return
        of_sample = opened.detach().float().reshape(opened.shape[0], -1, 2).mean(dim=1)
        counted = torch.cat([of_sample, torch.ones_like(of_sample[:, :1])], dim=1)
        for index, pair in enumerate(team.pairs):
            if pair is not None:
                chosen = counted if team.of_sample is None else counted * (team.of_sample == index).unsqueeze(1)
                seen = self._observed.get(pair)
                self._observed[pair] = chosen.sum(dim=0) if seen is None else seen + chosen.sum(dim=0)

    def take_observed_gates(self) -> dict[str, tuple[float, float]]:
        """Return the mean gates (general, specific) by pair over the samples that were trained on since the last
        call."""
        sums = {pair: tensor.tolist() for pair, tensor in self._observed.items()}
        self._observed.clear()
        return {pair: (general / count, specific / count) for pair, (general, specific, count) in sums.items()}

    def extra_repr(self) -> str:
        """Tell the sizes of the blocks."""
        parts: dict[str, Any] = {"general": self.layout.general, **self.layout.specific, "of": self.layout.neurons}
        return ", ".join(f"{key}={value}" for key, value in parts.items())
