"""The base inside: its sizes, its weights by PEFT's functions, and its own modules after `unload`."""

from __future__ import annotations

from typing import Any

import peft
import pytest
import torch
from transformers import PreTrainedModel

from peft_landermt import LanderFFN, NeuronMap

from ..conftest import PAIRS
from .helpers import adapt, cloned_state, ids, lander_layers, logits, same_state


def test_sizes_are_those_of_the_base(base: PreTrainedModel, neuron_map: NeuronMap) -> None:
    sizes = {name: weight.shape for name, weight in base.named_parameters()}
    layers = lander_layers(adapt(base, neuron_map, ["en-de"])).values()
    assert layers
    for layer in layers:
        assert layer.in_features == layer.out_features == base.config.hidden_size
        for name, projection in layer.projections.items():
            shape = next(sizes[key] for key in sizes if key.endswith(f"{name}.weight"))
            assert {projection.in_features, projection.out_features} == set(shape)
            assert projection(torch.zeros(1, 1, projection.in_features)).shape[-1] == projection.out_features


@pytest.mark.skipif(not hasattr(peft, "get_base_model_state_dict"), reason="PEFT 0.18 has no such functions")
def test_weights_of_the_base_by_the_functions_of_peft(base: PreTrainedModel, neuron_map: NeuronMap) -> None:
    before = cloned_state(base)
    model = adapt(base, neuron_map)
    expected = logits(model, ids(), language_pairs=PAIRS)
    state = {key: value.clone() for key, value in peft.get_base_model_state_dict(model).items()}
    assert same_state(state, before)
    with torch.no_grad():
        for layer in lander_layers(model).values():
            for projection in layer.projections.values():
                projection.weight.zero_()
    peft.set_base_model_state_dict(model, state)
    assert logits(model, ids(), language_pairs=PAIRS).equal(expected)


def test_unload_puts_the_modules_of_the_base_back(base: PreTrainedModel, neuron_map: NeuronMap) -> None:
    def modules(model: Any) -> list[tuple[str, int]]:
        return [(name, id(module)) for name, module in model.named_modules()]

    before = modules(base)
    model = adapt(base, neuron_map)
    assert any(isinstance(module, LanderFFN) for module in model.modules())
    assert modules(model.unload()) == before
