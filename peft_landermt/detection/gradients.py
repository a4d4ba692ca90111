"""Which modules a language pulls at: the gradient of the loss by the weights of FFN and attention, never kept whole.

This is not the paper's. A linear layer y = W x has the gradient G = Σ_t δ_t x_tᵀ, δ = dL/dy, whose squared norm is
Σ_{t,t'} (δ_t · δ_t') (x_t · x_t'): two products of T × T for each sentence, and no matrix as large as W.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import nn

from ..attention import ROLES, layer_of, recognise_attention
from ..ffn import FFN
from ..linear import features
from ..neuron_map_checks import PARTS
from ..padding import IGNORED
from .batches import Batch


def squared_norms(states: torch.Tensor, gradient: torch.Tensor) -> torch.Tensor:
    """Compute ‖Σ_t δ_t x_tᵀ‖² for every sentence.

    Args:
        states: (B, T, in); x, what enters a linear layer.
        gradient: (B, T, out); δ, the gradient of the loss by what comes out.

    Returns:
        float32 (B,).
    """
    states, gradient = states.float(), gradient.float()
    return ((states @ states.mT) * (gradient @ gradient.mT)).sum(dim=(1, 2))


class Part(NamedTuple):
    """A linear layer, or the rows of one of attention's projections in it.

    Attributes:
        name: One of `PARTS`.
        module: The linear layer.
        rows: Its rows that count; None for all.
        parameters: Numbers that factors of rank one have there.
    """

    name: str
    module: nn.Module
    rows: torch.Tensor | None
    parameters: int


def parts_of_layers(model: nn.Module, ffns: Sequence[FFN]) -> list[list[Part]]:
    """List the linear layers in every FFN and in the attention beside it."""
    found = []
    for ffn in ffns:
        named = [("output" if name == ffn.output else "input", name) for name in ffn.projections]
        here = [_part(part, ffn.module.get_submodule(name), None) for part, name in named]
        for module in model.get_submodule(layer_of(ffn.name)).modules():
            if (attention := recognise_attention(module)) is not None:
                here += [
                    _part(role, module.get_submodule(attention.projection(role)), attention.rows(role))
                    for role in ROLES
                ]
        found.append(here)
    return found


def _part(name: str, module: nn.Module, rows: torch.Tensor | None) -> Part:
    shape = features(module)
    assert shape is not None
    return Part(name, module, rows, shape[0] + (shape[1] if rows is None else len(rows)))


class WeightGradients:
    """Means over sentences of ‖G‖², for each number that factors of rank one have at a linear layer.

    Args:
        model: The model.
        ffns: Its FFNs; the attention beside them is found by itself.
        stacks: For every FFN, the stack that it is in.
    """

    def __init__(self, model: nn.Module, ffns: Sequence[FFN], stacks: Sequence[str]) -> None:
        self.layers, self.stacks = parts_of_layers(model, ffns), stacks
        self._sums: dict[tuple[str, int], torch.Tensor] = {}
        self._sentences: Counter[tuple[str, str]] = Counter()

    @contextmanager
    def tapped(self, batch: Batch, found: torch.Tensor) -> Iterator[None]:
        """Add ‖G‖² of every row's loss in a backward pass inside to `found`, (layers, parts, B)."""
        rows = len(batch.labels)

        def add(layer: int, part: Part, states: torch.Tensor, gradient: torch.Tensor) -> None:
            if part.rows is not None:
                gradient = gradient.index_select(-1, part.rows.to(gradient.device))
            shaped = (values.reshape(rows, -1, values.shape[-1]) for values in (states, gradient))
            found[layer, PARTS.index(part.name)] += (squared_norms(*shaped) / part.parameters).to(found.device)

        def hook(_module: nn.Module, args: tuple[Any, ...], out: torch.Tensor, layer: int, part: Part) -> torch.Tensor:
            # a decoder's first attention reads nothing that the graph begins with
            reached = out if out.requires_grad else out.requires_grad_(True)
            reached.register_hook(partial(add, layer, part, args[0].detach()))
            return reached if reached.grad_fn is not None else reached.clone()

        with ExitStack() as stack:
            for layer, parts in enumerate(self.layers):
                for part in parts:
                    tap = part.module.register_forward_hook(partial(hook, layer=layer, part=part))
                    stack.callback(tap.remove)
            yield

    def add(self, batch: Batch, found: torch.Tensor) -> None:
        """Count a batch: what `tapped` found, of losses that are sums over tokens."""
        predicted = (batch.labels != IGNORED).sum(dim=1).clamp_min(1).to(found)
        means = (found / predicted.square()).sum(dim=-1)
        for layer, stack in enumerate(self.stacks):
            key = (batch.languages[stack], layer)
            self._sums[key] = self._sums[key] + means[layer] if key in self._sums else means[layer]
        for stack, language in batch.languages.items():
            self._sentences[language, stack] += len(batch.labels)

    def means(self, languages: Sequence[str]) -> torch.Tensor:
        """Return float32 (L, layers, parts), 0 where a layer has no such part."""
        means = torch.zeros(len(languages), len(self.stacks), len(PARTS))
        for index, language in enumerate(languages):
            for layer, stack in enumerate(self.stacks):
                means[index, layer] = self._sums[language, layer] / self._sentences[language, stack]
        return means
