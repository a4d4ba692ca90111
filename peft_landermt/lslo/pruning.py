"""Gradual pruning: factors B lose their smallest entries while they are trained, and what is left tells who needs how
much."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Literal, NamedTuple, get_args

import torch
from peft import PeftModel
from torch import nn
from transformers import TrainerCallback

from ..errors import ConfigError
from .config import LsloConfig
from .factors import LanguageFactors
from .index import position_of
from .layer import lslo_layers

Scope = Literal["language", "layer"]


class Entry(NamedTuple):
    """The factors of one language at one linear layer.

    Attributes:
        layer: Stack and number of the layer, such as `"decoder.3"`.
        language: The language.
        blocks: What holds them.
    """

    layer: str
    language: str
    blocks: LanguageFactors

    @property
    def weight(self) -> torch.Tensor:
        """B, without regard to what is being pruned: (out, r)."""
        return self.blocks.get_parameter(f"{self.language}_B").data


def pruning_ratio(progress: float, ratio: float = 0.9, start: float = 1 / 15, stop: float = 11 / 15) -> float:
    """Tell which share is pruned at a point of training: none before `start`, and P - P (1 - t)^3 between.

    Args:
        progress: Share of training that is done.
        ratio: P, which is reached at `stop` and kept.
        start: Share of training at which pruning begins.
        stop: Share of training at which it ends.
    """
    if progress < start:
        return 0.0
    left = 1 - (progress - start) / (stop - start)
    return ratio - ratio * max(left, 0.0) ** 3


@torch.no_grad()
def prune_smallest(weights: Sequence[torch.Tensor], ratio: float) -> list[torch.Tensor]:
    """Choose which entries of a pool of tensors stay, by their absolute values.

    Args:
        weights: Tensors of any shapes, on one device.
        ratio: Share of all entries together that goes, rounded to a whole number of them; of equal ones the first.

    Returns:
        For each tensor a bool tensor of its shape.
    """
    sizes = [weight.numel() for weight in weights]
    scores = torch.cat([weight.detach().abs().float().flatten() for weight in weights])
    stays = torch.ones_like(scores, dtype=torch.bool)
    stays[scores.argsort(stable=True)[: round(ratio * len(scores))]] = False
    return [mask.view_as(weight) for mask, weight in zip(stays.split(sizes), weights, strict=True)]


def entries(model: nn.Module, adapter_name: str) -> list[Entry]:
    """List the factors of an LSLo adapter.

    Raises:
        AdapterError: There is no such adapter.
    """
    layers, found = lslo_layers(model, adapter_name), []
    two_stacks = isinstance(model.peft_config[adapter_name].index, dict)  # type: ignore[index]
    for name, layer in layers.items():
        place = position_of(name, two_stacks)
        assert place is not None
        blocks = layer.blocks(adapter_name)
        found += [Entry(f"{place.stack}.{place.layer}", language, blocks) for language in blocks.ranks]
    return found


def pools(found: Iterable[Entry], scope: Scope) -> Iterator[list[Entry]]:
    """Group factors whose entries are compared with each other: those of a language, or those of a layer; each device
    has pools of its own."""
    pooled: dict[Any, list[Entry]] = defaultdict(list)
    for entry in found:
        pooled[entry.language if scope == "language" else entry.layer, entry.weight.device].append(entry)
    yield from pooled.values()


class GradualPruning(TrainerCallback):
    """Prunes the factors B of LSLo adapters while a trainer trains them: `callbacks=[GradualPruning(ratio=0.9)]`.

    From `start` on, at the beginning of every interval the entries of the smallest absolute value go: they are set to
    zero, and stay zero, since the share never falls. A is never pruned, so at a ratio of 0.9 a layer keeps 55% of its
    numbers. The file stays as large; the gain is what the zeros tell, and fewer numbers that speak for a language.

    The defaults are the paper's run: 15 epochs, of which the second begins at 1/15. An adapter that is pruned already
    is pruned at least as far from the first step on, so training can be resumed with the same callback.

    Args:
        ratio: Share of the entries of B that is pruned in the end.
        start: Share of training at which pruning begins.
        stop: Share of training at which `ratio` is reached.
        every: Share of training after which entries are chosen anew.
        scope: `"language"`: each language loses `ratio` of its entries, of all layers together. `"layer"`: each layer
            loses `ratio` of its entries, of all languages together, which [`subspace_demand`] reads; all languages
            need the same rank then.

    Raises:
        ConfigError: An argument is out of its range. When training begins: there is no LSLo adapter to train, ranks
            differ with `scope="layer"`, or FSDP or ZeRO-3 would split the factors.
    """

    def __init__(
        self,
        ratio: float = 0.9,
        start: float = 1 / 15,
        stop: float = 11 / 15,
        every: float = 1 / 15,
        scope: Scope = "language",
    ) -> None:
        if not 0 < ratio < 1:
            raise ConfigError("ratio", ratio, "must be between 0 and 1.")
        if not 0 <= start < stop <= 1:
            raise ConfigError("start", [start, stop], "must be before stop, both from 0 to 1.")
        if not 0 < every <= 1:
            raise ConfigError("every", every, "must be from above 0 to 1.")
        if scope not in get_args(Scope):
            raise ConfigError("scope", scope, f"expected one of {', '.join(get_args(Scope))}.")
        self.ratio, self.start, self.stop, self.every, self.scope = ratio, start, stop, every, scope
        self._interval: int | None = None

    def on_train_begin(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        """Check that the model can be pruned."""
        self._interval = None
        adapters = _trained_adapters(model)
        if not adapters:
            raise ConfigError(
                "model", type(model).__name__, "has no active LSLo adapter; GradualPruning prunes these."
            )
        deepspeed = getattr(args, "hf_deepspeed_config", None)
        split = any(hasattr(weight, "device_mesh") or hasattr(weight, "ds_id") for weight in model.parameters())
        if split or getattr(args, "fsdp", None) or (deepspeed is not None and deepspeed.is_zero3()):
            problem = "FSDP and ZeRO-3 split factors over processes, which cannot be pruned so; train with DDP."
            raise ConfigError("args", "split weights", problem)
        for name in adapters if self.scope == "layer" else ():
            _check_one_rank(model, name)

    def on_step_begin(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        """Choose entries, where an interval begins."""
        interval = int(state.global_step / (state.max_steps * self.every) + 1e-6)
        if interval == self._interval:
            return
        self._interval = interval
        wanted = pruning_ratio(interval * self.every, self.ratio, self.start, self.stop)
        for name, config in _trained_adapters(model).items():
            config.pruned = max(config.pruned, wanted)
            for pool in pools(entries(model, name), self.scope) if config.pruned else ():
                masks = prune_smallest([entry.weight for entry in pool], config.pruned)
                for entry, mask in zip(pool, masks, strict=True):
                    entry.blocks.masks[entry.language] = mask
        _clear_pruned(model)

    def on_optimizer_step(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        """Set to zero what momentum has moved."""
        _clear_pruned(model)

    def on_train_end(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        """Forget what was chosen; the zeros stay."""
        for name in _trained_adapters(model):
            for entry in entries(model, name):
                entry.blocks.masks.clear()


def _trained_adapters(model: Any) -> dict[str, LsloConfig]:
    configs = getattr(model, "peft_config", {})
    active = getattr(model, "active_adapters", []) if configs else []
    names = active() if callable(active) else active  # transformers has a method of this name
    return {name: configs[name] for name in names if isinstance(configs.get(name), LsloConfig)}


@torch.no_grad()
def _clear_pruned(model: Any) -> None:
    for name in _trained_adapters(model):
        for entry in entries(model, name):
            if (mask := entry.blocks.masks.get(entry.language)) is not None:
                entry.weight.mul_(mask)


def _check_one_rank(model: Any, adapter_name: str) -> None:
    ranks = {entry.language: entry.blocks.ranks[entry.language] for entry in entries(model, adapter_name)}
    if len(set(ranks.values())) > 1:
        raise ConfigError("rank", ranks, "must be the same for all languages, which are compared within a layer.")


def subspace_demand(model: PeftModel, adapter_name: str = "default") -> dict[str, dict[str, float]]:
    """Tell in which layers a language needs few of its entries, and in which many, from how they were pruned.

    Train with `GradualPruning(scope="layer")` and the same rank for all languages. Absolute values can be compared
    only where languages have had equally many updates, so with equally many rows of each.

    Args:
        model: A model with a pruned LSLo adapter.
        adapter_name: The adapter.

    Returns:
        For every language and layer (`"decoder.3"`), P_l - P: the share of the language's entries that were pruned
        less that of all languages' entries. Below zero: the language needs more than others.

    Raises:
        AdapterError: There is no such adapter.
        ConfigError: It is not pruned, or its ranks differ.
    """
    found = entries(model, adapter_name)
    if not model.peft_config[adapter_name].pruned:
        raise ConfigError("pruned", 0.0, 'train the adapter with GradualPruning(scope="layer") first.')
    _check_one_rank(model, adapter_name)
    return demand((entry.layer, entry.language, entry.weight) for entry in found)


def demand(pruned: Iterable[tuple[str, str, torch.Tensor]]) -> dict[str, dict[str, float]]:
    """Compute what [`subspace_demand`] returns.

    Args:
        pruned: Layers, languages, and factors B of each, whose pruned entries are zero.
    """
    counts: dict[tuple[str, str], list[int]] = defaultdict(lambda: [0, 0])
    for layer, language, weight in pruned:
        zeros = int((weight == 0).sum())
        for counted in (language, ""):
            counts[layer, counted][0] += zeros
            counts[layer, counted][1] += weight.numel()
    shares = {key: zeros / total for key, (zeros, total) in counts.items()}
    found: dict[str, dict[str, float]] = defaultdict(dict)
    for layer, language in shares:
        if language:
            found[language][layer] = shares[layer, language] - shares[layer, ""]
    return dict(found)
