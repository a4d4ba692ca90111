"""Which FFNs an adapter is for, and what cannot be adapted."""

from __future__ import annotations

from typing import Any

import pytest
from peft import LoraConfig, get_peft_model, inject_adapter_in_model
from transformers import PreTrainedModel

from peft_landermt import NeuronMap
from peft_landermt.errors import ArchitectureError

from ..conftest import PAIRS
from .helpers import adapt, cloned_state, ids, lander_layers, logits, make_config, same_state

second_tuner = pytest.mark.filterwarnings("ignore:You are trying to modify", "ignore:Already found a `peft_config`")
INSIDE = {
    "llama": ("gate_proj", "self_attn"),
    "gemma3": ("down_proj", "self_attn"),
    "bloom": ("dense_4h_to_h", "self_attention"),
}
"""Modules of each architecture that are in an FFN, and beside it."""
one_architecture = pytest.mark.parametrize("architecture", ["llama"], indirect=True)


@pytest.mark.parametrize(
    ("options", "layers"),
    [
        ({}, [0, 1, 2, 3]),
        ({"target_modules": ["mlp"]}, [0, 1, 2, 3]),
        ({"target_modules": r".*\.2\.mlp"}, [2]),
        ({"layers_to_transform": [1, 3]}, [1, 3]),
        ({"layers_to_transform": 2}, [2]),
        ({"exclude_modules": r".*\.0\.mlp"}, [1, 2, 3]),
    ],
    ids=str,
)
def test_which_layers_are_adapted_without_a_map(
    base: PreTrainedModel, options: dict[str, Any], layers: list[int]
) -> None:
    names = list(lander_layers(adapt(base, **options)))
    assert [int(name.split(".")[-2]) for name in names] == layers


@pytest.mark.parametrize("pairs", [["en-de"], ["en-fr", "de-en"], PAIRS])
def test_the_map_chooses_the_layers(base: PreTrainedModel, neuron_map: NeuronMap, pairs: list[str]) -> None:
    layers = sorted({layer for pair in pairs for layer in neuron_map.pair_layers[pair]})
    assert list(lander_layers(adapt(base, neuron_map, pairs))) == [neuron_map.neurons[layer].name for layer in layers]


@one_architecture
def test_targets_narrow_what_the_map_chooses(base: PreTrainedModel, neuron_map: NeuronMap) -> None:
    layer = neuron_map.layers("en-de")[0]
    model = adapt(base, neuron_map, ["en-de"], target_modules=[f"layers.{layer}.mlp"])
    assert list(lander_layers(model)) == [neuron_map.neurons[layer].name]


@pytest.mark.parametrize("which", [0, 1])
@pytest.mark.parametrize("with_mlp", [False, True])
def test_targets_that_are_no_ffn(base: PreTrainedModel, architecture: str, which: int, with_mlp: bool) -> None:
    name = INSIDE[architecture][which]
    state, kinds = cloned_state(base), [type(module) for module in base.modules()]
    targets = [name, "mlp"] if with_mlp else [name]
    with pytest.raises(ArchitectureError, match=rf"{name}.*not an FFN; LANDER adapts whole FFN modules"):
        get_peft_model(base, make_config(target_modules=targets))
    assert same_state(base.state_dict(), state) and [type(module) for module in base.modules()] == kinds


def test_targets_that_are_no_ffn_with_a_neuron_map(
    base: PreTrainedModel, neuron_map: NeuronMap, architecture: str
) -> None:
    state = cloned_state(base)
    for name in INSIDE[architecture]:
        with pytest.raises(ValueError, match=name):
            get_peft_model(base, make_config(neuron_map, target_modules=[name]))
    assert same_state(base.state_dict(), state)


@second_tuner
@pytest.mark.parametrize("with_map", [False, True])
def test_lora_inside_an_ffn_is_refused(
    base: PreTrainedModel, neuron_map: NeuronMap, architecture: str, with_map: bool
) -> None:
    inject_adapter_in_model(LoraConfig(target_modules=[INSIDE[architecture][0]], r=2), base)
    state = cloned_state(base)
    with pytest.raises(ArchitectureError, match=r"has adapters of another method .* merge them into the base first"):
        get_peft_model(base, make_config(neuron_map if with_map else None))
    assert same_state(base.state_dict(), state)


@second_tuner
def test_lora_elsewhere_is_none_of_our_business(
    base: PreTrainedModel, neuron_map: NeuronMap, architecture: str
) -> None:
    targets = ["query_key_value"] if architecture == "bloom" else ["q_proj"]
    inject_adapter_in_model(LoraConfig(target_modules=targets, r=2), base)
    model = adapt(base, neuron_map)
    assert logits(model, ids(), language_pairs=PAIRS).isfinite().all() and lander_layers(model)
