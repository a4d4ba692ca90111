"""Mixed precision: autocast of a float32 base, and deltas less precise than the base."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.overrides import TorchFunctionMode
from transformers import PreTrainedModel

from peft_landermt import NeuronMap

from .helpers import adapt, ids, lander_layers, logits

MIXED = ["en-de", "en-fr", "de-en", "en-de", "de-en"]


@pytest.mark.parametrize("general_rank", [None, 4])
@pytest.mark.parametrize("inactive_neurons", ["keep", "drop"])
@pytest.mark.parametrize("car", ["off", "paper", "token", "learned"])
def test_autocast(
    base: PreTrainedModel, neuron_map: NeuronMap, car: str, inactive_neurons: str, general_rank: int | None
) -> None:
    """A float32 base under bfloat16 autocast, as with TrainingArguments(bf16=True)."""
    model = adapt(base, neuron_map, car=car, inactive_neurons=inactive_neurons, general_rank=general_rank).train()
    exact = logits(model, ids(len(MIXED)), language_pairs=MIXED)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = model(input_ids=ids(len(MIXED)), labels=ids(len(MIXED)), language_pairs=MIXED)
    output.loss.backward()
    error = (output.logits.float() - exact).norm() / exact.norm()
    assert error < 0.1  # some dozens of roundings to 8 bits
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad is not None and parameter.grad.isfinite().all(), name


class SameTypes(TorchFunctionMode):
    """Writes down the types of what is put into rows of a tensor, and of the tensor where it is another."""

    def __init__(self) -> None:
        super().__init__()
        self.put: list[torch.dtype] = []
        self.mismatches: list[tuple[torch.dtype, torch.dtype]] = []

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if getattr(function, "__name__", "").strip("_") in ("index_copy", "index_add", "index_put", "scatter"):
            target, *others = (value for value in args if isinstance(value, torch.Tensor))
            self.put.append(others[-1].dtype)
            if others[-1].dtype != target.dtype:
                self.mismatches.append((target.dtype, others[-1].dtype))
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("architecture", ["llama", "bloom"], indirect=True)
@pytest.mark.parametrize("car", ["off", "token", "paper", "learned"])
def test_autocast_copies_no_rows_between_types(base: PreTrainedModel, neuron_map: NeuronMap, car: str) -> None:
    """CPU autocast promotes the operands of index_copy, CUDA autocast does not: there, other types are an error."""
    model = adapt(base, neuron_map, car=car)
    with SameTypes() as seen, torch.autocast("cpu", dtype=torch.bfloat16):
        logits(model, ids(len(MIXED)), language_pairs=MIXED)
    assert seen.put and seen.mismatches == []


@pytest.mark.parametrize("general_rank", [None, 4])
def test_deltas_less_precise_than_the_base(
    base: PreTrainedModel, neuron_map: NeuronMap, general_rank: int | None
) -> None:
    """Deltas of zero in bfloat16 change nothing on a base in float32, not by rounding either."""
    before = logits(base, ids())
    model = adapt(base, neuron_map, ["en-de"], seed=None, general_rank=general_rank)
    for layer in lander_layers(model).values():
        layer.lander_blocks.to(torch.bfloat16)
    torch.testing.assert_close(logits(model, ids()), before, rtol=1e-6, atol=1e-6)
    model.merge_adapter()
    torch.testing.assert_close(logits(model, ids()), before, rtol=1e-6, atol=1e-6)
