"""A call as a value: which sample of a batch goes to which adapter and which language pair.

A call is made once, where a model's `forward` or `generate` is entered, and is at hand in that thread until it
returns. Nothing about it is written on the model, so calls in several threads, and calls inside of calls, do not meet.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from itertools import chain, repeat
from typing import Any, Protocol, TypeVar

import torch

from ..errors import LanguagePairError

Destination = tuple[str, "str | None"]
"""An adapter and one of its pairs; None for an adapter without pairs."""

Weights = tuple[tuple[int, ...], ...]
"""For every pair of some, the weight of each of some groups of columns."""

_BATCHED = (
    "input_ids", "inputs", "inputs_embeds", "input_features", "input_values", "pixel_values", "attention_mask",
    "labels", "decoder_input_ids",
)  # fmt: skip

_Made = TypeVar("_Made")


class Holder(Protocol):
    """A layer that holds blocks of adapters."""

    def holds(self, adapter_name: str, /) -> bool:
        """Tell whether an adapter has blocks here."""

    def blocks(self, adapter_name: str, /) -> Any:
        """Return the blocks of an adapter; they say which pairs they concern."""

    def check_together(self, adapter_names: Sequence[str], /) -> None:
        """Raise where adapters cannot serve the same samples."""


_thread = threading.local()


@dataclass(frozen=True, eq=False)
class Call:
    """One forward or generate call of a model.

    Attributes:
        routing: That of the model that is called; other models do not see the call.
        samples: For every sample its destination, None for the base model; None where all samples go to `active`.
        active: Adapters that serve all samples together, so that their deltas add up.
        named: The argument that named the destinations, for messages.
        keeps: Whether weights cannot change while the call runs, so that what is made of them is kept from token to
            token. True in `generate`.
    """

    routing: object
    samples: tuple[Destination | None, ...] | None = None
    active: tuple[Destination, ...] = ()
    named: str = "language_pairs"
    keeps: bool = False
    _made: dict[Hashable, Any] = field(default_factory=dict, repr=False)

    def check_batch(self, batch: int | None) -> None:
        """Check that there is one destination for each of `batch` samples; at least one where that is not known.

        Raises:
            LanguagePairError: If there is not.
        """
        if self.samples is not None and (not self.samples if batch is None else batch != len(self.samples)):
            given, each = (
                ([], "sample of the batch") if batch is None else (len(self.samples), f"of the {batch} samples")
            )
            raise LanguagePairError(self.named, given, f"give one entry for each {each}.")

    def by_sample(self, states: torch.Tensor) -> torch.Tensor:
        """View (B, ..., d) as (samples, tokens, d): beams, returned sequences and flattened tokens lie
        together.

        Raises:
            LanguagePairError: B is no multiple of the number of samples.
        """
        if self.samples is None or (states.dim() == 3 and states.shape[0] == len(self.samples)):
            return states
        if states.shape[0] % len(self.samples):
            self.check_batch(states.shape[0])
        return states.reshape(len(self.samples), -1, states.shape[-1])

    def teams(self, layer: Holder, device: torch.device) -> tuple[Team, ...]:
        """Return the teams that play at a layer; none where the base model serves all samples."""
        return self.once((layer, device), lambda: tuple(self._find_teams(layer, device)))

    def with_teams(self, layer: Holder, device: torch.device, teams: Sequence[Team]) -> Call:
        """Return this call, with other teams at one layer."""
        return replace(self, _made={**self._made, (layer, device): tuple(teams)})

    def once(self, key: Hashable, make: Callable[..., _Made], *values: Any) -> _Made:
        """Return what `make` returns of `values`, made once for all layers; for what no gradient flows through."""
        made = self._made.get(key)
        if made is None:
            made = self._made[key] = make(*values)
        return made

    def _find_teams(self, layer: Holder, device: torch.device) -> Iterator[Team]:
        if self.samples is None:
            chosen = [name for name, pair in self.active if layer.holds(name) and layer.blocks(name).concerns(pair)]
            layer.check_together(chosen)
            yield from (Team(self, layer.blocks(name), (pair,)) for name, pair in self.active if name in chosen)
            return
        for name, pairs in self._pairs_of_adapters().items():
            if layer.holds(name):
                blocks = layer.blocks(name)
                here = tuple([pair for pair in pairs if not blocks.pairs or pair is None or pair in blocks.pairs])
                if here:
                    yield Team(self, blocks, here, *self._samples_of(name, here, device))

    def _pairs_of_adapters(self) -> dict[str, tuple[str | None, ...]]:
        if "pairs" not in self._made:
            pairs: dict[str, dict[str | None, None]] = {}
            for name, pair in filter(None, self.samples or ()):
                pairs.setdefault(name, {})[pair] = None
            self._made["pairs"] = {name: tuple(of_adapter) for name, of_adapter in pairs.items()}
        return self._made["pairs"]

    def _samples_of(
        self, adapter: str, pairs: tuple[str | None, ...], device: torch.device
    ) -> tuple[torch.Tensor | None, torch.Tensor | None]:
        """Samples of an adapter that have one of some pairs, and which; layers with the same pairs share it."""
        assert self.samples is not None
        key = (adapter, pairs, device)
        if key not in self._made:
            wanted = {(adapter, pair): index for index, pair in enumerate(pairs)}
            chosen = [(index, wanted[to]) for index, to in enumerate(self.samples) if to is not None and to in wanted]
            samples, of_sample = (torch.tensor(column, device=device) for column in zip(*chosen, strict=True))
            everyone = len(chosen) == len(self.samples)
            self._made[key] = (None if everyone else samples, of_sample if len(pairs) > 1 else None)
        return self._made[key]


class Team:
    """The samples of a call that one adapter serves at one layer.

    Args:
        call: The call.
        blocks: What the adapter holds at the layer.
        pairs: Distinct pairs among the samples.
        samples: int64 (n,), ascending: which samples of the call; None for all.
        of_sample: int64 (n,): for each of them the index of its pair in `pairs`; None for a single pair.
    """

    def __init__(
        self,
        call: Call,
        blocks: Any,
        pairs: tuple[str | None, ...],
        samples: torch.Tensor | None = None,
        of_sample: torch.Tensor | None = None,
    ) -> None:
        self.call, self.blocks, self.pairs = call, blocks, pairs
        self.samples, self.of_sample = samples, of_sample
        self.token_gates: torch.Tensor | None = None
        self.met: set[str] = set()
        self._made: dict[Hashable, Any] = {}

    def take(self, tensor: torch.Tensor) -> torch.Tensor:
        """Select the team's samples of (samples, ...)."""
        return tensor if self.samples is None else tensor.index_select(0, self.samples)

    def put(self, tensor: torch.Tensor, part: torch.Tensor) -> torch.Tensor:
        """Return (samples, ...) with the team's samples replaced."""
        part = part.to(tensor.dtype)
        return part if self.samples is None else tensor.index_copy(0, self.samples, part)

    def spread(self, by_pair: torch.Tensor) -> torch.Tensor:
        """Give each sample its row of (pairs, ...), over all its tokens: (n, 1, ...); (...) where there is one
        pair."""
        return by_pair[0] if self.of_sample is None else by_pair[self.of_sample].unsqueeze(1)

    def weigh(
        self, weights: Weights, widths: tuple[int, ...], dtype: torch.dtype, device: torch.device
    ) -> torch.Tensor:
        """Weigh columns for each sample: (n, 1, columns), or (columns,) where there is one pair; layers of one form
        share them, and wait for the device once.

        Args:
            weights: For each of `pairs` the weight of every group of columns: 0 where it does not use them.
            widths: Columns of every group.
            dtype: Type of the weights.
            device: Their device.
        """
        key = ("weigh", self.of_sample, weights, widths, dtype, device)
        return self.call.once(key, self._weigh, weights, widths, dtype, device)

    def _weigh(
        self, weights: Weights, widths: tuple[int, ...], dtype: torch.dtype, device: torch.device
    ) -> torch.Tensor:
        rows = [list(chain.from_iterable(map(repeat, row, widths))) for row in weights]
        return self.spread(torch.tensor(rows, dtype=dtype).to(device, non_blocking=True))

    def once(self, key: Hashable, make: Callable[..., _Made], *values: Any) -> _Made:
        """Return what `make` returns of `values`, made once a call; for what no gradient flows through."""
        made = self._made.get(key)
        if made is None:
            made = self._made[key] = make(*values)
        return made

    def kept(self, key: Hashable, make: Callable[..., _Made], *values: Any) -> _Made:
        """Return what `make` returns of `values`; made once a call where weights cannot change while it runs."""
        return self.once(key, make, *values) if self.call.keeps and not torch.is_grad_enabled() else make(*values)


@contextmanager
def entered(call: Call) -> Iterator[None]:
    """Have `call` be the call of this thread inside."""
    before = getattr(_thread, "call", None)
    _thread.call = call
    try:
        yield
    finally:
        _thread.call = before


def current_call(routing: object) -> Call | None:
    """Return the call of this thread, if it is one of the model with this routing."""
    call = getattr(_thread, "call", None)
    return call if call is not None and call.routing is routing else None


def batch_size(args: Sequence[Any], kwargs: Mapping[str, Any], main_input: str = "input_ids") -> int | None:
    """Find the number of samples of a call, where a tensor among its arguments tells it.

    Args:
        args: Positional arguments; the first tensor among them counts.
        kwargs: Keyword arguments.
        main_input: What the model calls its main input.
    """
    # others, such as logits_to_keep or position_ids, need not have a row for each sample
    known = [kwargs.get(name) for name in (main_input, *_BATCHED)]
    tensors = (value for value in (*args, *known) if isinstance(value, torch.Tensor) and value.dim())
    return next((int(tensor.shape[0]) for tensor in tensors), None)
