"""What training has done to an adapter, against the weights written out and the gates as routing makes them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import PreTrainedModel

from peft_landermt import NeuronMap
from peft_landermt.lander.gates import learned_gates

from ..conftest import PAIRS
from .helpers import adapt, ids, lander_layers, layer_index, recorded_calls


@pytest.fixture(params=["llama", "bloom"])
def architecture(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.mark.parametrize("rank", [None, 4])
def test_changes_are_norms_of_the_rows_that_belong_to_a_language(
    base: PreTrainedModel, neuron_map: NeuronMap, rank: int | None
) -> None:
    before = {name: weight.clone() for name, weight in base.state_dict().items()}
    model = adapt(base, neuron_map, ["en-de"], general_rank=rank)
    metrics = model.base_model.training_metrics()
    assert set(metrics) == {"change_general", "change_de", "change_en"}
    names = {neuron_map.neurons[layer].name: layer for layer in neuron_map.layers("en-de")}
    merged = model.merge_and_unload().state_dict()
    for block in ("general", "de", "en"):
        moved, there = 0.0, 0.0
        for name, layer in names.items():
            neurons = neuron_map.general(layer) if block == "general" else neuron_map.specific(layer, block)
            for key in [key for key in before if key.startswith(name + ".") and key.endswith(".weight")]:
                axis = 1 if "down_proj" in key or "4h_to_h" in key else 0
                old, new = (state[key].index_select(axis, neurons).double() for state in (before, merged))
                moved, there = moved + float((new - old).square().sum()), there + float(old.square().sum())
        assert metrics[f"change_{block}"] == pytest.approx((moved / there) ** 0.5, rel=1e-5)


def test_nothing_has_moved_at_the_start(base: PreTrainedModel, neuron_map: NeuronMap) -> None:
    metrics = adapt(base, neuron_map, seed=None).base_model.training_metrics()
    assert set(metrics) == {"change_general", "change_de", "change_en", "change_fr"}
    assert set(metrics.values()) == {0.0}


@pytest.mark.parametrize(("car", "exchanged"), [("paper", False), ("proportional", True)])
def test_constant_gates(base: PreTrainedModel, neuron_map: NeuronMap, car: Any, exchanged: bool) -> None:
    metrics = adapt(base, neuron_map, car=car).base_model.training_metrics()
    for pair in PAIRS:
        layers = neuron_map.layers(pair)
        car_of_pair = sum(neuron_map.car(layer, pair) for layer in layers) / len(layers)
        gates = [metrics[f"gate_{group}_{pair}"] for group in ("general", "specific")]
        assert gates[:: -1 if exchanged else 1] == pytest.approx([car_of_pair, 1 - car_of_pair], rel=1e-5)


def test_learned_gates_are_means_over_the_tokens_of_a_pair(base: PreTrainedModel, neuron_map: NeuronMap) -> None:
    model = adapt(base, neuron_map, car="learned").train()
    batch = ids(4)
    pairs = ["en-de", "de-en", "en-de", "de-en"]
    with recorded_calls(model) as calls:
        model(input_ids=batch, language_pairs=pairs)
    metrics = model.base_model.training_metrics()
    assert not any("en-fr" in name for name in metrics), "no token of that pair went through"
    for pair, rows in (("en-de", [0, 2]), ("de-en", [1, 3])):
        expected = []
        for name, layer in lander_layers(model).items():
            if layer_index(neuron_map, name) in neuron_map.layers(pair):
                here = [other for other in PAIRS if layer_index(neuron_map, name) in neuron_map.layers(other)]
                gates = layer.blocks("default").get_parameter("gates")[here.index(pair)].detach()
                expected.append(learned_gates(calls[name][0][rows], gates).mean(dim=(0, 1)))
        mean = torch.stack(expected).mean(dim=0)
        for group, value in zip(("general", "specific"), mean.tolist(), strict=True):
            assert metrics[f"gate_{group}_{pair}"] == pytest.approx(value, rel=1e-4)
    assert not any(name.startswith("gate") for name in model.base_model.training_metrics()), "they were taken"


def test_token_gates_are_seen(base: PreTrainedModel, neuron_map: NeuronMap) -> None:
    model = adapt(base, neuron_map, ["en-de"], car="token").train()
    model(input_ids=ids(3))
    metrics = model.base_model.training_metrics()
    assert metrics["gate_general_en-de"] > 0 and metrics["gate_specific_en-de"] > 0


def test_only_training_is_observed(base: PreTrainedModel, neuron_map: NeuronMap) -> None:
    model = adapt(base, neuron_map, ["en-de"], car="learned")
    model(input_ids=ids(3))
    assert not any(name.startswith("gate") for name in model.base_model.training_metrics())


def test_adapters_tell_apart(base: PreTrainedModel, neuron_map: NeuronMap) -> None:
    model = adapt(base, neuron_map, ["en-de"])
    model.add_adapter("other", model.peft_config["default"])
    model.base_model.set_adapter(["default", "other"])
    metrics = model.base_model.training_metrics()
    assert metrics["default/change_general"] > 0 and metrics["other/change_general"] == 0
