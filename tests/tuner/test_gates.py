"""Gates: eq. 6 to 8 by hand, and adapted FFNs against ones written out group by group (eq. 6 to 9)."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel

from peft_landermt import LanderFFN, NeuronMap
from peft_landermt.lander.gates import constant_gates, learned_gates, token_gates
from peft_landermt.neuron_map import LayerNeurons, conditional_awareness

from ..conftest import PAIRS
from .helpers import (
    adapt,
    base_hidden,
    base_projection,
    dense_deltas,
    ids,
    lander_layers,
    layer_index,
    logits,
    naive_ffn,
    neuron_groups,
    recorded_calls,
)

MIXED = ["en-de", "en-fr", "de-en", "en-de", "de-en"]
close = {"atol": 1e-5, "rtol": 1e-5}


# By hand


@pytest.fixture
def small_map() -> NeuronMap:
    """Five neurons: two general, one for each of three languages. Phi of en-de is (2, 1, 2, 2, 1)."""
    phi = torch.tensor([[1.0, 2, 3, 0, 1], [3.0, 0, 1, 4, 1], [5.0, 5, 5, 5, 9]])
    layer = LayerNeurons("ffn", torch.tensor([-1, -1, 0, 1, 2]), phi, torch.zeros(3, 5), torch.zeros(3, 5))
    pairs = ("en-de", "de-fr")
    return NeuronMap(
        ("en", "de", "fr"), dict.fromkeys(pairs, (0,)), dict.fromkeys(pairs, ()), (layer,), 4, None, "by hand"
    )


def test_car_by_hand(small_map: NeuronMap) -> None:
    # en-de: Phi of neurons 2 and 3 is 2 + 2, of the general neurons 0 and 1 it is 2 + 1
    assert small_map.awareness_sums(0, "en-de") == (4.0, 3.0)
    assert small_map.car(0, "en-de") == pytest.approx(4 / 7)
    # de-fr: Phi is (4, 2.5, 3, 4.5, 5); neurons 3 and 4 have 9.5, the general ones 6.5
    assert small_map.car(0, "de-fr") == pytest.approx(9.5 / 16)


@pytest.mark.parametrize(
    ("specific", "general", "car"), [(4.0, 3.0, 4 / 7), (1.0, 9.0, 0.1), (0.0, 2.0, 0.0), (2.0, 0.0, 1.0), (0, 0, 0)]
)
def test_constant_gates_by_hand(specific: float, general: float, car: float) -> None:
    assert conditional_awareness(specific, general) == pytest.approx(car)
    assert constant_gates("paper", specific, general) == pytest.approx((car, 1 - car))
    assert constant_gates("proportional", specific, general) == pytest.approx((1 - car, car))


def test_learned_gates_by_hand() -> None:
    x = torch.tensor([[[1.0, 2.0], [0.0, -1.0]]])
    assert learned_gates(x, torch.zeros(2, 3)).equal(torch.ones(1, 2, 2))
    # general: w = (1, 0), b = 0; specific: w = (0, 1), b = log 3; sigmoid(log 3) = 3 / 4
    gates = torch.tensor([[1.0, 0.0, 0.0], [0.0, 1.0, math.log(3)]])
    sigmoid = [1 / (1 + math.exp(-value)) for value in (1, 2 + math.log(3), 0, -1 + math.log(3))]
    expected = 2 * torch.tensor([[sigmoid[:2], sigmoid[2:]]])
    torch.testing.assert_close(learned_gates(x, gates), expected)
    torch.testing.assert_close(learned_gates(x, gates.expand(1, 2, 3)), expected)


def test_token_gates_by_hand() -> None:
    gradient, general = torch.tensor([1.0, -2.0, 1.0]), torch.tensor([True, False, False])
    specific = torch.tensor([False, True, False])
    # |g h| = (3, 1, 7): CAR = 1/4. Calibration: 1 specific, 4 general: mean CAR = 1/5.
    gates = token_gates(torch.tensor([[3.0, 0.5, 7.0]]), gradient, general, specific, torch.tensor([1.0, 4.0]))
    torch.testing.assert_close(gates, torch.tensor([[(1 / 4) / (1 / 5), (3 / 4) / (4 / 5)]]))
    # without specific awareness in calibration there is nothing to be relative to
    gates = token_gates(torch.tensor([[3.0, 0.5, 7.0]]), gradient, general, specific, torch.tensor([0.0, 4.0]))
    assert gates.equal(torch.ones(1, 2))


# An adapted FFN against one written out


def gates_by_formula(
    car: str, neuron_map: NeuronMap, layer: int, pair: str, x: torch.Tensor, hidden: torch.Tensor, learned: Any
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Factors of the input and of the deltas for the general and the specific group (eq. 6 to 8)."""
    entry, groups = neuron_map.neurons[layer], neuron_groups(neuron_map, layer, pair)
    if car == "off" or layer not in neuron_map.pair_layers[pair]:
        return {}, {}
    languages = [neuron_map.languages.index(language) for language in pair.split("-")]

    def share(phi: torch.Tensor) -> torch.Tensor:
        specific, general = (phi[..., groups[name]].sum(-1) for name in ("specific", "general"))
        return specific / (specific + general)

    if car == "learned":
        weight, bias = learned[:, :-1], learned[:, -1]
        values = 2 / (1 + torch.exp(-(x @ weight.t() + bias)))
        return {"general": values[..., :1], "specific": values[..., 1:]}, {}
    if car == "token":
        gradient = entry.mean_gradient[languages].mean(0)
        at_token = share((gradient * hidden).abs()).unsqueeze(-1)
        mean = share(gradient.abs() * entry.mean_abs_activation[languages].mean(0))
        if mean == 0:  # nothing to be relative to
            return {}, {}
        return {}, {"general": at_token / mean, "specific": (1 - at_token) / (1 - mean)}
    value = float(share(entry.awareness[languages].mean(0)))
    first, second = (value, 1 - value) if car == "paper" else (1 - value, value)
    return {"general": first, "specific": second}, {}


def assert_equals_naive(base: PreTrainedModel, neuron_map: NeuronMap, **options: Any) -> None:
    """Each FFN's output for every sample of a mixed batch equals the one written out for the sample's pair."""
    model = adapt(base, neuron_map, **options)
    with recorded_calls(model) as calls:
        logits(model, ids(len(MIXED)), language_pairs=MIXED)
    assert len(calls) == len({layer for layers in neuron_map.pair_layers.values() for layer in layers})
    for name, layer in lander_layers(model).items():
        index, (states, residual, output) = layer_index(neuron_map, name), calls[name]
        here = [pair for pair in PAIRS if index in neuron_map.pair_layers[pair]]
        gates = dict(layer.blocks("default").named_parameters()).get("gates")
        for sample, pair in enumerate(MIXED):
            x, groups = states[sample], neuron_groups(neuron_map, index, pair)
            learned = gates[here.index(pair)].detach() if gates is not None and pair in here else None
            factors = gates_by_formula(
                options.get("car", "off"), neuron_map, index, pair, x, base_hidden(layer, x), learned
            )
            if options.get("tune") == "layers" and pair in here:
                groups = {"general": torch.arange(layer.neurons)}
            expected = naive_ffn(
                layer,
                x,
                groups,
                dense_deltas(layer, neuron_map, index, pair if pair in here else None),
                *factors,
                drop=options.get("inactive_neurons") == "drop" and pair in here,
                residual=None if residual is None else residual[sample],
            )
            torch.testing.assert_close(output[sample], expected, **close)


@pytest.mark.parametrize("general_rank", [None, 4])
@pytest.mark.parametrize("inactive_neurons", ["keep", "drop"])
@pytest.mark.parametrize("car", ["off", "paper", "proportional", "token", "learned"])
def test_mixed_batch_equals_ffns_written_out(
    base: PreTrainedModel, neuron_map: NeuronMap, car: str, inactive_neurons: str, general_rank: int | None
) -> None:
    assert_equals_naive(base, neuron_map, car=car, inactive_neurons=inactive_neurons, general_rank=general_rank)


@pytest.mark.parametrize("architecture", ["gemma3", "bloom"], indirect=True)
@pytest.mark.parametrize("car", ["off", "paper", "token"])
@pytest.mark.parametrize(
    "options",
    [
        {"tune": "general", "general_rank": None},
        {"tune": "general", "general_rank": 4},
        {"tune": "specific"},
        {"tune": "specific", "inactive_neurons": "drop"},
    ],
    ids=str,
)
def test_what_is_tuned_equals_ffns_written_out(
    base: PreTrainedModel, neuron_map: NeuronMap, car: str, options: dict[str, Any]
) -> None:
    assert_equals_naive(base, neuron_map, car=car, **options)


@pytest.mark.parametrize("general_rank", [None, 4])
def test_tune_layers_equals_ffns_written_out(
    base: PreTrainedModel, neuron_map: NeuronMap, general_rank: int | None
) -> None:
    """All neurons of a pair's layers are general."""
    assert_equals_naive(base, neuron_map, tune="layers", general_rank=general_rank)


@pytest.mark.parametrize("architecture", ["llama", "bloom"], indirect=True)
@pytest.mark.parametrize("car", ["paper", "proportional"])
def test_constant_gates_keep_their_precision_in_bfloat16(
    base: PreTrainedModel, neuron_map: NeuronMap, architecture: str, car: str
) -> None:
    """A gate of 0.05 computed as 1 + (0.05 - 1) in bfloat16 would be off by 1.6%, with and without biases."""
    index = neuron_map.layers("en-de")[0]
    groups, entry = neuron_groups(neuron_map, index, "en-de"), neuron_map.neurons[index]
    phi = torch.zeros_like(entry.awareness)
    phi[:, groups["specific"]], phi[:, groups["general"]] = 5 / len(groups["specific"]), 95 / len(groups["general"])
    neurons = [dataclasses.replace(entry, awareness=phi) if entry is other else other for other in neuron_map.neurons]
    known = dataclasses.replace(neuron_map, neurons=tuple(neurons))
    model = adapt(base.to(torch.bfloat16), known, ["en-de"], seed=None, car=car, verify_base=False)
    found = gates_of(lander_layers(model)[entry.name], architecture == "bloom")
    gates = (0.05, 0.95) if car == "paper" else (0.95, 0.05)
    for group, gate in zip(("general", "specific", "inactive"), (*gates, 1.0), strict=True):
        # half a unit in the last of bfloat16's 8 bits, of the gate and of the product
        wanted = torch.full((len(groups[group]),), gate)
        torch.testing.assert_close(found[groups[group]], wanted, rtol=2**-8, atol=0)


@torch.no_grad()
def gates_of(layer: LanderFFN, reads_residual: bool) -> torch.Tensor:
    """Gates (p,) of an FFN, read from its outputs: every input projection gives 1024 for every neuron, which the
    activation leaves as it is, and the output projection picks as many neurons as there are outputs at a time."""
    for name in layer.projection_names:
        projection = base_projection(layer, name)
        projection.weight.zero_()
        if projection.bias is not None:
            projection.bias.zero_()
    for name in layer.input_names:
        base_projection(layer, name).weight[:, 0] = 1024.0
    states = torch.ones(1, 1, layer.width, dtype=torch.bfloat16)
    arguments = (states, torch.zeros_like(states)) if reads_residual else (states,)
    values = []
    for first in range(0, layer.neurons, layer.width):
        picked = base_projection(layer, layer.output_name).weight.zero_()[:, first : first + layer.width]
        picked.copy_(torch.eye(layer.width))
        values.append(layer(*arguments)[0, 0].float())
    # two input projections multiply to the square
    return torch.cat(values) ** (1 / len(layer.input_names)) / 1024


def without_specific_neurons(neuron_map: NeuronMap, *languages: str) -> NeuronMap:
    """The map with all neurons of some languages given to French."""
    given = [neuron_map.languages.index(language) for language in languages]
    french = neuron_map.languages.index("fr")
    neurons = tuple(
        dataclasses.replace(entry, owner=entry.owner.masked_fill(torch.isin(entry.owner, torch.tensor(given)), french))
        for entry in neuron_map.neurons
    )
    return dataclasses.replace(neuron_map, neurons=neurons)


@pytest.mark.parametrize("architecture", ["llama", "bloom"], indirect=True)
@pytest.mark.parametrize("languages", [("en",), ("en", "de")], ids=str)
@pytest.mark.parametrize(
    "options",
    [
        {"car": "off"},
        {"car": "learned"},
        {"inactive_neurons": "drop"},
        {"car": "paper"},
        {"car": "proportional"},
        {"car": "token", "inactive_neurons": "drop"},
    ],
    ids=str,
)
def test_languages_without_specific_neurons(
    base: PreTrainedModel, neuron_map: NeuronMap, languages: tuple[str, ...], options: dict[str, Any]
) -> None:
    """Unnormalised awareness can leave a language, or a pair, without neurons of its own in a layer."""
    assert_equals_naive(base, without_specific_neurons(neuron_map, *languages), **options)
