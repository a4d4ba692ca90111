"""What is known of a linear layer: its features, its rows, whether it is only a product."""

from __future__ import annotations

import pytest
import torch
from accelerate.hooks import AlignDevicesHook, add_hook_to_module
from torch import nn
from transformers.pytorch_utils import Conv1D

from peft_landermt.linear import features, has_dense_weight, is_plain_linear, weight_rows

from .conftest import Quantized


@pytest.mark.parametrize(
    ("layer", "expected"),
    [
        (nn.Linear(3, 5), (3, 5)),
        (Conv1D(5, 3), (3, 5)),
        (Quantized(3, 5), (3, 5)),
        (nn.Embedding(3, 5), None),
        (nn.Conv1d(3, 5, 1), None),
        (nn.LayerNorm(3), None),
    ],
)
def test_features(layer: nn.Module, expected: tuple[int, int] | None) -> None:
    assert features(layer) == expected


@pytest.mark.parametrize("layer", [nn.Linear(3, 5), Conv1D(5, 3)])
def test_weight_rows_is_a_view_of_out_by_in(layer: nn.Module) -> None:
    nn.init.zeros_(layer.bias)
    with torch.no_grad():
        rows = weight_rows(layer)
        assert rows.shape == (5, 3)
        rows.zero_()[4] = torch.tensor([1.0, 2.0, 3.0])  # the last output feature
        assert layer(torch.tensor([[1.0, 10.0, 100.0]])).tolist() == [[0.0, 0.0, 0.0, 0.0, 321.0]]


class _Subclass(nn.Linear):
    pass


class _OwnForward(nn.Linear):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x) + 1


@pytest.mark.parametrize(
    ("layer", "dense", "plain"),
    [
        (nn.Linear(3, 5), True, True),
        (nn.Linear(3, 5, dtype=torch.bfloat16), True, True),
        (Conv1D(5, 3), True, True),
        (_Subclass(3, 5), True, True),
        (_OwnForward(3, 5), True, False),
        (nn.Linear(3, 5).to(torch.float8_e4m3fn), False, False),
        (Quantized(3, 5), False, False),
        (nn.ReLU(), False, False),
    ],
)
def test_has_dense_weight(layer: nn.Module, dense: bool, plain: bool) -> None:
    assert (has_dense_weight(layer), is_plain_linear(layer)) == (dense, plain)


def test_hooks_make_a_layer_more_than_its_product() -> None:
    layer = nn.Linear(3, 5)
    handle = layer.register_forward_hook(lambda *_: None)
    assert not is_plain_linear(layer)
    handle.remove()
    assert is_plain_linear(layer)
    add_hook_to_module(layer, AlignDevicesHook(execution_device="cpu"))
    assert not is_plain_linear(layer) and has_dense_weight(layer)
