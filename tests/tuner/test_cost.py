"""What a call does not do: multiply a sample twice, or make a weight twice."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode
from transformers import PreTrainedModel

from peft_landermt import NeuronMap
from peft_landermt.routed import projection
from peft_landermt.routed.projection import Update, add_updates

from .helpers import adapt, ids, logits, two_adapters

SHAPES = ((64, 32), (32, 64))
"""Of the projections' weights; states of one token or of the prompt have others."""


@pytest.fixture
def architecture() -> str:
    return "llama"


def test_whole_rows_need_no_products_of_their_own(base: PreTrainedModel, neuron_map: NeuronMap) -> None:
    """They are folded into the weight of the samples that they serve, and no sample is multiplied twice."""

    def operations(model: PreTrainedModel, **route: Any) -> int:
        with FlopCounterMode(display=False) as counter:
            logits(model, ids(4), **route)
        return counter.get_total_flops()

    plain = operations(base)
    model = two_adapters(base, neuron_map, general_rank=None)
    assert operations(model, adapter_names=["en-fr", "__base__", "en-de", "en-fr"]) == plain
    assert operations(model, adapter_names=["en-fr"] * 4) == plain
    factors = two_adapters(model.unload(), neuron_map, general_rank=2)
    assert operations(factors, adapter_names=["en-fr", "__base__", "en-de", "en-fr"]) > plain


class WeightsMade(TorchDispatchMode):
    """Counts tensors of a weight's shape that are made, views left out."""

    def __init__(self) -> None:
        super().__init__()
        self.number = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        if isinstance(result, torch.Tensor) and tuple(result.shape) in SHAPES:
            given = [value.data_ptr() for value in args if isinstance(value, torch.Tensor)]
            self.number += result.data_ptr() not in given
        return result


def test_generate_makes_a_weight_once(base: PreTrainedModel, neuron_map: NeuronMap) -> None:
    """Weights with deltas in them are kept while `generate` runs, and made anew for the next call."""
    model = adapt(base, neuron_map, ["en-de"], general_rank=None)

    def generate(model: PreTrainedModel, tokens: int = 4) -> tuple[torch.Tensor, int]:
        with WeightsMade() as made:
            options = {"max_new_tokens": tokens, "min_new_tokens": tokens, "do_sample": False}
            return model.generate(input_ids=ids(), attention_mask=torch.ones(3, 8), **options), made.number

    def merged() -> torch.Tensor:
        twin = copy.deepcopy(model)
        twin.merge_adapter()
        return generate(twin)[0]

    first, made = generate(model)
    assert made > 0 and generate(model, tokens=8)[1] == made
    assert merged().equal(first)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.data.mul_(-1)  # does not count as a change for autograd
    changed, again = generate(model)
    assert again == made and merged().equal(changed) and not changed.equal(first)


class Products(TorchDispatchMode):
    """Counts products of matrices."""

    def __init__(self) -> None:
        super().__init__()
        self.number = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.number += function in (torch.ops.aten.mm.default, torch.ops.aten.addmm.default)
        return function(*args, **(kwargs or {}))


def test_low_rank_blocks_share_two_products(base: PreTrainedModel, neuron_map: NeuronMap) -> None:
    """However many languages a batch has, a projection costs two products beside that of the base, as LoRA does."""

    def products(model: PreTrainedModel, **route: Any) -> int:
        with Products() as counted:
            logits(model, ids(4), **route)
        return counted.number

    plain = products(base)
    model = adapt(base, neuron_map, attention_modules=None, projections="all", general_rank=2, specific_rank=2)
    layers = len({layer for pair in neuron_map.pair_layers for layer in neuron_map.layers(pair)})
    pairs = [*neuron_map.pair_layers, "en-de"]
    assert len(pairs) == 4 and products(model, language_pairs=pairs) == plain + 2 * 3 * layers


def test_thin_factors_lie_along_their_long_side(
    base: PreTrainedModel, neuron_map: NeuronMap, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other way the backward pass on a CPU takes up to three times as long."""
    seen: list[Update] = []

    def add(result: torch.Tensor, states: torch.Tensor, updates: Sequence[Update]) -> torch.Tensor:
        seen.extend(updates)
        return add_updates(result, states, updates)

    monkeypatch.setattr(projection, "add_updates", add)
    model = adapt(
        base,
        neuron_map,
        attention_modules=["q", "o"],
        attention_rank=1,
        projections="all",
        general_rank=3,
        specific_rank=2,
    )
    logits(model, ids(2), language_pairs=["en-de", "en-fr"])
    assert {update.down.shape[0] for update in seen if update.down is not None} == {1, 7, 9}, "in attention; joined"
    for update in seen:
        assert update.down is not None and update.up is not None
        assert update.down.is_contiguous() and update.up.mT.is_contiguous()
