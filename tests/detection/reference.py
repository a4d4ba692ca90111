"""More tiny models, and the equations written down naively: one sentence at a time, no padding, nothing shared."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from transformers import GPT2Config, GPT2LMHeadModel, OPTConfig, OPTForCausalLM, PreTrainedModel

from ..conftest import PAIRS, SENTENCES, VOCABULARY, build_model

# where h enters the output projection; written out here so that the reference does not use the library's table
OUTPUT_PROJECTION = {
    "llama": "model.layers.{}.mlp.down_proj",
    "gemma3": "model.layers.{}.mlp.down_proj",
    "bloom": "transformer.h.{}.mlp.dense_4h_to_h",
    "opt": "model.decoder.layers.{}.fc2",
    "gpt2": "transformer.h.{}.mlp.c_proj",
}
OPTIONS: dict[str, Any] = {
    "sentences": SENTENCES,
    "language_pairs": PAIRS,
    "num_layers": 2,
    "general_ratio": 0.7,
    "progress": False,
}


def build(architecture: str) -> PreTrainedModel:
    """The models of conftest, and two more: FFNs without a module of their own (OPT), transposed weights (GPT-2)."""
    special = {"vocab_size": VOCABULARY, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
    torch.manual_seed(0)
    if architecture == "opt":
        sizes = {"hidden_size": 32, "word_embed_proj_dim": 32, "ffn_dim": 64, "num_hidden_layers": 4}
        config = OPTConfig(**special, **sizes, num_attention_heads=4, max_position_embeddings=256, init_std=0.2)
        return OPTForCausalLM(config).eval()
    if architecture == "gpt2":
        sizes = {"n_embd": 32, "n_inner": 64, "n_layer": 4, "n_head": 4}
        return GPT2LMHeadModel(GPT2Config(**special, **sizes, initializer_range=0.2)).eval()
    return build_model(architecture)


def output_projections(model: nn.Module, architecture: str) -> list[nn.Module]:
    return [model.get_submodule(OUTPUT_PROJECTION[architecture].format(layer)) for layer in range(4)]


@contextmanager
def captured(model: nn.Module, architecture: str, retain_grad: bool = False) -> Iterator[list[torch.Tensor]]:
    """The activations h of every FFN, in the order of the layers, for one forward pass."""
    hidden: list[torch.Tensor] = []

    def hook(_module: nn.Module, args: tuple[torch.Tensor, ...]) -> None:
        if retain_grad:
            args[0].retain_grad()
        hidden.append(args[0])

    handles = [module.register_forward_pre_hook(hook) for module in output_projections(model, architecture)]
    try:
        yield hidden
    finally:
        for handle in handles:
            handle.remove()


@dataclass
class Statistics:
    """Means over all tokens of a language, each (layers, p)."""

    awareness: torch.Tensor
    mean_gradient: torch.Tensor
    mean_abs_activation: torch.Tensor


def naive_awareness(model: nn.Module, architecture: str, tokenizer: Any, texts: Sequence[str]) -> Statistics:
    """Eq. 3, 4 by one backward through all weights; L is the mean loss over the predicted tokens of the language."""
    model.requires_grad_(True)
    loss, predicted, passes = torch.zeros(()), 0, []
    for text in texts:
        ids = torch.tensor([tokenizer(text)["input_ids"]])
        with captured(model, architecture, retain_grad=True) as hidden:
            logits = model(input_ids=ids).logits
        loss = loss + F.cross_entropy(logits[0, :-1], ids[0, 1:], reduction="sum")
        predicted += ids.shape[1] - 1
        passes.append(hidden)
    (loss / predicted).backward()
    layers = []
    for layer in zip(*passes, strict=True):
        h = torch.cat([hidden.detach().flatten(0, -2) for hidden in layer])
        gradient = torch.cat([hidden.grad.flatten(0, -2) for hidden in layer])
        layers.append(torch.stack([(gradient * h).abs().mean(0), gradient.mean(0), h.abs().mean(0)]).float())
    model.zero_grad()
    return Statistics(*torch.stack(layers, dim=1))


def spearman(first: torch.Tensor, second: torch.Tensor) -> float:
    """Rank correlation; no ties expected."""
    ranks = torch.stack([values.argsort().argsort().double() for values in (first, second)])
    return float(torch.corrcoef(ranks)[0, 1])
