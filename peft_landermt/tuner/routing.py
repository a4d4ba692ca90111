"""Routing: which samples go to which pair, and conditional awareness-based gates (eq. 6 to 9)."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar

import torch

from ..errors import LanguagePairError
from ..neuron_map import Number, conditional_awareness
from .blocks import NeuronBlocks

Destination = tuple[str, "str | None"]
"""An adapter and one of its pairs; None for an adapter without pairs."""

INPUT_DEPENDENT = ("token", "learned")
"""Values of `car` whose gate depends on the input."""

_Made = TypeVar("_Made")


class Keep(Protocol):
    """Returns what `make` makes; how often `make` is called for one key is its own affair."""

    def __call__(self, key: Hashable, make: Callable[[], _Made], /) -> _Made: ...


def make_anew(_key: Hashable, make: Callable[[], _Made]) -> _Made:
    """Keep nothing."""
    return make()


def constant_gates(mode: str, specific: Number, general: Number) -> tuple[Number, Number]:
    """Gates of the general and of the specific neurons that do not depend on the input (eq. 7, 8).

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
    """Token-conditional gates 2 · sigmoid(w · x_t + b), one for each group of neurons; 1 where w and b are 0.

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
    """CAR of every token relative to its calibration mean (eq. 6, Phi(i) taken as | mean gradient_i · h_i(x_t) |).

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


@dataclass(frozen=True)
class Rows:
    """Samples of a batch that one adapter serves at one FFN.

    Attributes:
        adapter: Name of the adapter.
        pairs: Distinct pairs among the samples.
        samples: int64 indices of the samples in the batch, ascending; None for all.
        pair_of_sample: int64; for each of these samples the index of its pair in `pairs`; None for a single pair.
    """

    adapter: str
    pairs: tuple[str | None, ...]
    samples: torch.Tensor | None = None
    pair_of_sample: torch.Tensor | None = None


@dataclass(frozen=True)
class Route:
    """Where the samples of one forward or generate call go: one destination for each, None for the base model."""

    destinations: tuple[Destination | None, ...]
    _cache: dict[tuple[object, ...], Rows | None] = field(default_factory=dict, compare=False, repr=False)

    @property
    def adapters(self) -> list[str]:
        return list(dict.fromkeys(destination[0] for destination in self.destinations if destination is not None))

    def check_length(self, batch: int | None) -> None:
        """Raise LanguagePairError if there is not one destination per sample; for None, if there is none at all."""
        if batch is None and not self.destinations:
            raise LanguagePairError("language_pairs", [], "give one entry for each sample of the batch.")
        if batch is not None and batch != len(self.destinations):
            raise LanguagePairError(
                "language_pairs", len(self.destinations), f"give one entry for each of the {batch} samples."
            )

    def rows(self, adapter: str, blocks: NeuronBlocks, batch: int, device: torch.device) -> Rows | None:
        """Samples of `adapter` whose pair concerns the FFN of `blocks`; None if there are none.

        A batch that is a multiple of the route's length repeats every sample in place: beams, returned sequences, or
        tokens flattened into the batch.
        """
        key = (adapter, blocks.layout.language_pairs, batch, device)
        if key not in self._cache:
            self._cache[key] = self._find_rows(adapter, blocks, batch, device)
        return self._cache[key]

    def _find_rows(self, adapter: str, blocks: NeuronBlocks, batch: int, device: torch.device) -> Rows | None:
        repeat, rest = divmod(batch, len(self.destinations))
        if rest or not repeat:
            raise LanguagePairError(
                "language_pairs",
                len(self.destinations),
                f"give one pair for each of the {batch} samples of the batch.",
            )
        chosen = [
            (index * repeat + copy, destination[1])
            for index, destination in enumerate(self.destinations)
            if destination is not None and destination[0] == adapter and blocks.layout.concerns(destination[1])
            for copy in range(repeat)
        ]
        if not chosen:
            return None
        pairs = tuple(dict.fromkeys(pair for _, pair in chosen))
        samples = torch.tensor([index for index, _ in chosen], device=device) if len(chosen) < batch else None
        of_sample = torch.tensor([pairs.index(pair) for _, pair in chosen], device=device) if len(pairs) > 1 else None
        return Rows(adapter, pairs, samples, of_sample)


class Routing:
    """Routing state that all adapted FFNs of a model share.

    Attributes:
        pairs: The pairs of every adapter; empty for an adapter without pairs.
        chosen: The pair that [`LanderModel.set_language_pair`] chose, by adapter.
        route: The route of the call in progress, if it named pairs or adapters for its samples.
        kept: What [`keep`] keeps while a call of `generate` is in progress; None otherwise.
    """

    def __init__(self) -> None:
        self.pairs: dict[str, tuple[str, ...]] = {}
        self.chosen: dict[str, str] = {}
        self.route: Route | None = None
        self.kept: dict[Hashable, Any] | None = None

    def keep(self, key: Hashable, make: Callable[[], _Made]) -> _Made:
        """What `make` returns; made once for each key while `generate` runs, where no weight and no route changes."""
        if self.kept is None or torch.compiler.is_compiling():
            return make()
        if key not in self.kept:
            self.kept[key] = make()
        return self.kept[key]

    def pair_of(self, adapter: str) -> str | None:
        """The pair that all samples of an adapter take when the call names none.

        Raises:
            LanguagePairError: If the adapter has several pairs and none was chosen.
        """
        pairs = self.pairs.get(adapter, ())
        if len(pairs) <= 1:
            return pairs[0] if pairs else None
        if adapter not in self.chosen:
            raise LanguagePairError(
                "language_pairs",
                None,
                f"adapter {adapter!r} holds {', '.join(pairs)}; pass language_pairs=[...] with one pair per sample, "
                "or call model.set_language_pair(...).",
            )
        return self.chosen[adapter]

    def check_pair(self, adapter: str, pair: str) -> str:
        """Return `pair` if the adapter holds it.

        Raises:
            LanguagePairError: If it does not.
        """
        pairs = self.pairs.get(adapter, ())
        if pair not in pairs:
            held = f"holds {', '.join(pairs)}" if pairs else "was made without language pairs"
            raise LanguagePairError("language_pair", pair, f"adapter {adapter!r} {held}.")
        return pair

    def arguments(
        self,
        language_pairs: Sequence[str],
        adapter_names: Sequence[str] | None,
        active_adapters: Sequence[str],
        merged_adapters: Sequence[str],
    ) -> dict[str, list[str | None]]:
        """What [`LanderModel.routing_arguments`] returns, and raises."""
        if adapter_names is not None:
            routed = [bool(self.pairs.get(name)) for name in adapter_names]
            pairs = [pair if has_pairs else None for pair, has_pairs in zip(language_pairs, routed, strict=True)]
            return {"language_pairs": pairs} if any(routed) else {}
        serving = [name for name in merged_adapters or active_adapters if self.pairs.get(name)]
        if not merged_adapters and list(active_adapters) == serving[:1]:
            held = [self.check_pair(serving[0], pair) for pair in language_pairs]
            return {"language_pairs": [*held]} if len(self.pairs[serving[0]]) > 1 else {}
        served = [self.pair_of(name) for name in serving]
        for pair in language_pairs if served else ():
            if pair not in served:
                state = "the model is merged for" if merged_adapters else "the active adapters together serve"
                raise LanguagePairError("language_pair", pair, f"{state} {', '.join(map(str, served))}.")
        return {}

    def make_route(
        self,
        active_adapters: Sequence[str],
        language_pairs: Sequence[str | None] | None,
        adapter_names: Sequence[str] | None,
        batch: int | None,
    ) -> Route:
        """Build the route of a call from its `language_pairs` and `adapter_names`, one of each per sample.

        A pair that is None is the one that the sample's adapter takes when the call names none.

        Raises:
            LanguagePairError: Lengths do not fit, or a pair or adapter is unknown.
        """
        given = {"language_pairs": language_pairs, "adapter_names": adapter_names}
        for name, values in given.items():
            if isinstance(values, str):
                raise LanguagePairError(name, values, "expected a list with one entry per sample.")
            if values is not None and batch is not None and len(values) != batch:
                raise LanguagePairError(name, len(values), f"give one entry for each of the {batch} samples.")
        if language_pairs is not None and adapter_names is not None and len(language_pairs) != len(adapter_names):
            raise LanguagePairError(
                "language_pairs", len(language_pairs), f"{len(adapter_names)} adapter_names given."
            )
        if adapter_names is None:
            if len(active_adapters) != 1:
                raise LanguagePairError(
                    "language_pairs", list(active_adapters), "needs one active adapter; pass adapter_names too."
                )
            adapter_names = [active_adapters[0]] * len(language_pairs or ())
        unknown = sorted({name for name in adapter_names if name != "__base__"} - set(self.pairs))
        if unknown:
            raise ValueError(f"Trying to infer with non-existing adapter(s): {', '.join(unknown)}")
        destinations: list[Destination | None] = []
        for index, name in enumerate(adapter_names):
            if name == "__base__":
                destinations.append(None)
            else:
                pair = None if language_pairs is None else language_pairs[index]
                destinations.append((name, self.pair_of(name) if pair is None else self.check_pair(name, pair)))
        return Route(tuple(destinations))
