"""What the tests of LSLo share."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from typing import Any

import torch
from peft import PeftModel, get_peft_model
from torch import nn
from transformers import M2M100Config, M2M100ForConditionalGeneration, PreTrainedModel, T5Config
from transformers import T5ForConditionalGeneration as T5

from peft_landermt import LsloConfig
from peft_landermt.lslo import LsloLinear
from peft_landermt.routed.call import Call, entered
from peft_landermt.routed.routing import Routing

from ..conftest import PAIRS, VOCABULARY, build_model, randomize_adapter

DECODER_ONLY = ("llama", "gemma3", "gpt2", "opt", "bloom")
TWO_STACKS = ("m2m100", "t5")
BOTH_WAYS = [*PAIRS, "fr-en"]


@cache
def _built(architecture: str) -> PreTrainedModel:
    torch.manual_seed(0)
    tokens = {"vocab_size": VOCABULARY, "pad_token_id": 0, "eos_token_id": 2, "decoder_start_token_id": 2}
    if architecture == "m2m100":
        sizes: dict[str, Any] = {"d_model": 32, "encoder_layers": 4, "decoder_layers": 2, "init_std": 0.2}
        for side in ("encoder", "decoder"):
            sizes |= {f"{side}_attention_heads": 4, f"{side}_ffn_dim": 64, f"{side}_layerdrop": 0.0}
        config = M2M100Config(**tokens, **sizes, bos_token_id=1, dropout=0.0, attention_dropout=0.0)
        return M2M100ForConditionalGeneration(config).eval()
    if architecture == "t5":
        sizes = {"d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 4, "num_decoder_layers": 2, "num_heads": 4}
        model = T5(T5Config(**tokens, **sizes, dropout_rate=0.0, feed_forward_proj="gated-gelu"))
        for parameter in model.parameters():
            nn.init.normal_(parameter, std=0.2)
        return model.eval()
    return build_model(architecture)


def build(architecture: str) -> PreTrainedModel:
    """A fresh random model of one of both kinds."""
    return copy.deepcopy(_built(architecture))


def make_config(base: PreTrainedModel, pairs: Sequence[str] = PAIRS, **options: Any) -> LsloConfig:
    task = "SEQ_2_SEQ_LM" if base.config.is_encoder_decoder else "CAUSAL_LM"
    return LsloConfig(**{"task_type": task, "language_pairs": list(pairs), "rank": 2, **options})


def adapt(
    base: PreTrainedModel, pairs: Sequence[str] = PAIRS, *, seed: int | None = 1, adapter_name: str = "default",
    **options: Any,
) -> PeftModel:  # fmt: skip
    """`base` with one adapter, in evaluation mode; factors are random unless `seed` is None."""
    model = get_peft_model(base, make_config(base, pairs, **options), adapter_name)
    if seed is not None:
        randomize_adapter(model, seed=seed)
    return model.eval()


def layers_of(model: nn.Module) -> dict[str, LsloLinear]:
    found = {name: module for name, module in model.named_modules() if isinstance(module, LsloLinear)}
    return {name.removeprefix("base_model.model."): layer for name, layer in found.items()}


def parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """Factors of all languages, by their names in a file."""
    return {
        name.removeprefix("base_model.model.").replace(".lslo_blocks.default.", "."): parameter
        for name, parameter in model.named_parameters()
        if ".lslo_blocks." in name
    }


def layer_by_hand(word: str, ranks: dict[str, int], **options: Any) -> LsloLinear:
    """W = I (2, 2), with an adapter."""
    layer = LsloLinear(nn.Linear(2, 2, bias=False), Routing())
    layer.routing.pairs["default"] = ("en-de", "de-en")
    nn.init.eye_(layer.base_layer.weight)
    layer.base_layer.requires_grad_(False)
    layer.update_layer("default", word, ranks, **options)
    layer.set_adapter("default")
    return layer


@contextmanager
def called_with(layer: LsloLinear, *pairs: str) -> Iterator[None]:
    """Have the samples of a call take these pairs."""
    with entered(Call(layer.routing, tuple(("default", pair) for pair in pairs))):
        yield
