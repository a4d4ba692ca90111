"""Something of the same size in place of what detection finds: random neurons, other layers, layers by gradients."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import nn

from peft_landermt import NeuronMap
from peft_landermt.ffn import find_ffns

CONTROLS = ("", "random neurons", "random layers", "first layers", "middle layers", "last layers", "largest gradients")


def control(found: NeuronMap, kind: str, seed: int) -> NeuronMap:
    """A map with something of the same size in place of what was detected."""
    if kind not in CONTROLS:
        raise ValueError(f"control={kind!r}: must be one of {', '.join(map(repr, CONTROLS))}.")
    if not kind:
        return found
    generator = torch.Generator().manual_seed(seed)
    if kind == "random neurons":
        neurons = tuple(
            dataclasses.replace(layer, owner=layer.owner[torch.randperm(len(layer.owner), generator=generator)])
            for layer in found.neurons
        )
        return controlled(found, kind, neurons=neurons)
    draw = partial(_consecutive, kind) if kind != "random layers" else partial(_random, generator=generator)
    layers = {pair: tuple(draw(found.num_layers, len(chosen))) for pair, chosen in found.pair_layers.items()}
    return controlled(found, kind, pair_layers=layers)


def controlled(found: NeuronMap, kind: str, **changed: Any) -> NeuronMap:
    """A map with something else in place of what was detected; its signature names the control."""
    return dataclasses.replace(found, signature=f"{found.signature}|control:{kind}", **changed)


def _consecutive(kind: str, total: int, count: int) -> list[int]:
    start = {"first layers": 0, "middle layers": (total - count) // 2, "last layers": total - count}[kind]
    return list(range(start, start + count))


def _random(total: int, count: int, generator: torch.Generator) -> list[int]:
    return sorted(torch.randperm(total, generator=generator)[:count].tolist())


@torch.enable_grad()
def gradient_norms(model: nn.Module, tokenizer: Any, texts: Sequence[str]) -> torch.Tensor:
    """How strongly plain text pulls at every FFN.

    Args:
        model: A base model; its weights and their gradients are left as they are.
        tokenizer: Its tokenizer.
        texts: Sentences of one language.

    Returns:
        float32 (layers,): norm of the gradient of a sentence's mean loss by the weights of the FFN's projections,
        averaged over sentences.
    """
    layers = [
        [model.get_parameter(f"{ffn.name}.{projection}.weight") for projection in ffn.projections]
        for ffn in find_ffns(model)
    ]
    norms = []
    for text in texts:
        ids = tokenizer(text, return_tensors="pt")["input_ids"].to(model.device)
        loss = model(input_ids=ids, labels=ids).loss
        gradients = torch.autograd.grad(loss, [weight for weights in layers for weight in weights])
        squares = torch.stack([gradient.float().square().sum() for gradient in gradients])
        norms.append(squares.reshape(len(layers), -1).sum(dim=1).sqrt())
    return torch.stack(norms).mean(dim=0).cpu()


def layers_by_gradient(
    norms: Mapping[str, torch.Tensor], pairs: Sequence[str], num_layers: int
) -> dict[str, tuple[int, ...]]:
    """For every pair, the layers with the largest `gradient_norms`, summed over its two languages; ascending."""

    def largest(pair: str) -> tuple[int, ...]:
        source, target = pair.split("-")
        return tuple(sorted((norms[source] + norms[target]).topk(num_layers).indices.tolist()))

    return {pair: largest(pair) for pair in pairs}
