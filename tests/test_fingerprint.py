"""What identifies a base model."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence

import pytest
import torch
from torch import nn

from peft_landermt.fingerprint import fingerprint

from .conftest import Quantized, build_model


def test_fingerprint_is_the_checkpoint_s_not_the_precision_s(base: nn.Module) -> None:
    half = copy.deepcopy(base).to(torch.bfloat16)
    full = copy.deepcopy(half).to(torch.float32)
    found = fingerprint(full)
    assert found is not None
    assert len(found) == 16
    assert set(found) <= set("0123456789abcdef")
    assert fingerprint(half) == found
    assert fingerprint(half.to(torch.float64)) == found
    assert fingerprint(full.train().requires_grad_(False)) == found


def test_fingerprint_of_a_float32_checkpoint_loaded_in_bfloat16() -> None:
    model = build_model("llama")
    weight = model.model.layers[0].mlp.up_proj.weight
    assert not torch.equal(weight, weight.bfloat16().float()), "weights that bfloat16 has to round"
    before = fingerprint(model)
    assert fingerprint(model.to(torch.bfloat16)) == before


def test_fingerprint_tells_seeds_apart() -> None:
    assert len({fingerprint(build_model("llama", seed=seed)) for seed in range(4)}) == 4


@pytest.mark.parametrize("layer", [0, 3])
@pytest.mark.parametrize("projection", ["gate_proj", "up_proj", "down_proj"])
def test_fingerprint_follows_every_projection(layer: int, projection: str) -> None:
    model = build_model("llama")
    before = fingerprint(model)
    weight = model.get_parameter(f"model.layers.{layer}.mlp.{projection}.weight")
    with torch.no_grad():
        weight.mul_(1.02)  # a bfloat16 has 8 bits: steps of 0.4 to 0.8 percent
    assert fingerprint(model) != before


def test_fingerprint_tells_layers_and_widths_apart() -> None:
    def constant(neurons: int, layers: int) -> nn.Module:
        model = build_model("llama", intermediate_size=neurons, num_hidden_layers=layers)
        for parameter in model.parameters():
            nn.init.constant_(parameter, 0.5)
        return model

    sizes: Sequence[tuple[int, int]] = [(64, 4), (64, 3), (65, 4)]
    assert len({fingerprint(constant(*size)) for size in sizes}) == 3


def test_fingerprint_where_weights_cannot_be_read() -> None:
    def ffn(linear: Callable[[int, int], nn.Module]) -> nn.Module:
        return nn.Sequential(nn.ModuleDict({"fc1": linear(8, 20), "fc2": linear(20, 8)}))

    assert fingerprint(ffn(nn.Linear)) is not None
    assert fingerprint(ffn(Quantized)) is None
    assert fingerprint(build_model("llama").to("meta")) is None
    assert fingerprint(build_model("llama").to(torch.float16)) is None, "rounds a bfloat16 checkpoint to other weights"
