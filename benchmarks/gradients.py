"""Layers chosen by gradients, which the paper does not do: something to compare its choice by activations with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from peft_landermt.ffn import find_ffns


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
        inputs = tokenizer(text, return_tensors="pt").to(model.device)
        loss = model(**inputs, labels=inputs["input_ids"]).loss
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
