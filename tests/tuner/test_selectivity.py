"""Training touches the neurons of the pairs, and each neuron learns from the samples of its pairs alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from peft import PeftModel, get_peft_model
from torch import nn
from transformers import PreTrainedModel

from peft_landermt import LanderFFN, NeuronMap

from ..conftest import PAIRS
from .helpers import (
    adapt,
    adapt_kind,
    cloned_state,
    ids,
    lander_layers,
    layer_index,
    logits,
    make_config,
    neuron_groups,
    route,
)

MIXED = ["en-de", "en-fr", "de-en", "en-de"]
TUNED: list[dict[str, Any]] = [
    {"tune": "pair", "general_rank": None},
    {"tune": "pair", "general_rank": 4},
    {"tune": "general", "general_rank": None},
    {"tune": "general", "general_rank": 4},
    {"tune": "specific"},
    {"tune": "layers", "general_rank": None},
    {"tune": "layers", "general_rank": 4},
]
one_architecture = pytest.mark.parametrize("architecture", ["llama"], indirect=True)


def train(model: PeftModel, steps: int, **keywords: Any) -> None:
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    for step in range(steps):
        batch = ids(len(MIXED), seed=step)
        model(input_ids=batch, labels=batch, **keywords).loss.backward()
        optimizer.step()
        optimizer.zero_grad()


def summed_loss(model: nn.Module, batch: torch.Tensor, weights: torch.Tensor, **keywords: Any) -> torch.Tensor:
    """Sum over tokens of the loss, times a weight per sample."""
    scores = model(input_ids=batch, **keywords).logits[:, :-1]
    each = F.cross_entropy(scores.transpose(1, 2).float(), batch[:, 1:], reduction="none").sum(1)
    return (each * weights).sum()


def gradients(model: nn.Module, batch: torch.Tensor, pairs: Sequence[str], weights: Any = 1.0) -> dict[str, Any]:
    """Gradient of `summed_loss` for every trainable parameter, zero where it has none."""
    model.zero_grad()
    summed_loss(model, batch, torch.as_tensor(weights), language_pairs=list(pairs)).backward()
    trainable = {name: p for name, p in model.named_parameters() if p.requires_grad}
    return {name: torch.zeros_like(p) if p.grad is None else p.grad.clone() for name, p in trainable.items()}


def tuned_neurons(neuron_map: NeuronMap, layer: int, pair: str, tune: str) -> torch.Tensor:
    """Mask of the neurons that training with a pair may change, from the neuron map alone."""
    groups = neuron_groups(neuron_map, layer, pair)
    mask = torch.zeros(len(neuron_map.neurons[layer].owner), dtype=torch.bool)
    names = {"pair": ("general", "specific"), "layers": ("general", "specific", "inactive")}.get(tune, (tune,))
    if layer in neuron_map.pair_layers[pair]:
        for name in names:
            mask[groups[name]] = True
    return mask


@pytest.mark.parametrize("options", TUNED, ids=str)
def test_only_neurons_of_the_pairs_change(
    base: PreTrainedModel, neuron_map: NeuronMap, options: dict[str, Any]
) -> None:
    before = cloned_state(base)
    model = adapt(base, neuron_map, seed=None, **options).train()
    train(model, 5, language_pairs=MIXED)
    plain = {key.replace(".base_layer", ""): value for key, value in model.get_base_model().state_dict().items()}
    assert all(plain[key].equal(value) for key, value in before.items())  # nothing but the adapter was trained
    for pair in PAIRS:
        model.set_language_pair(pair)
        model.merge_adapter()
        merged = {key.replace(".base_layer", ""): value for key, value in model.get_base_model().state_dict().items()}
        weights = {}
        for name, layer in lander_layers(model).items():
            tuned = tuned_neurons(neuron_map, layer_index(neuron_map, name), pair, options["tune"])
            for projection in layer.projection_names:
                key = f"{name}.{projection}.weight"
                weights[key] = tuned, merged[key] != before[key]
                changed = weights[key][1].any(dim=0 if projection == layer.output_name else 1)
                assert not changed[~tuned].any(), key
                assert changed[tuned].all(), key
        assert sum(int(tuned.sum()) for tuned, _ in weights.values()) > 0
        assert all(merged[key].equal(value) for key, value in before.items() if key not in weights)
        model.unmerge_adapter()


def members(neuron_map: NeuronMap, parameter: str, pair: str, tune: str) -> bool:
    """Whether a sample of `pair` trains a delta, by the layer and the block in the parameter's name."""
    module, _, tensor = parameter.removeprefix("base_model.model.").partition(".lander_blocks.default.")
    if layer_index(neuron_map, module) not in neuron_map.pair_layers[pair]:
        return False
    block = tensor.partition("_")[0]
    return block in ("general", *pair.split("-"))


@pytest.mark.parametrize("options", [*TUNED, {"tune": "pair", "car": "paper", "inactive_neurons": "drop"}], ids=str)
def test_gradient_is_the_sum_over_the_samples_of_the_neuron(
    base: PreTrainedModel, neuron_map: NeuronMap, options: dict[str, Any]
) -> None:
    model = adapt(base, neuron_map, **options).train()
    batch = ids(len(MIXED))
    together = gradients(model, batch, MIXED)
    expected = {name: torch.zeros_like(value) for name, value in together.items()}
    for row, pair in enumerate(MIXED):
        alone = gradients(model, batch[row : row + 1], [pair])
        for name, value in alone.items():
            if members(neuron_map, name, pair, options["tune"]):
                assert value.abs().sum() > 0
                expected[name] += value
            else:
                assert not value.any(), (name, pair)  # exactly zero
    for name, value in together.items():
        torch.testing.assert_close(value, expected[name], rtol=1e-4, atol=1e-5 * float(expected[name].abs().max()))
    for pair in PAIRS:  # in the mixed batch too, nothing leaks over
        only = gradients(model, batch, MIXED, [float(other == pair) for other in MIXED])
        leaked = [name for name, g in only.items() if g.any() != members(neuron_map, name, pair, options["tune"])]
        assert leaked == []


@one_architecture
def test_each_pair_trains_its_own_learned_gates(base: PreTrainedModel, neuron_map: NeuronMap) -> None:
    model = adapt(base, neuron_map, car="learned").train()
    for pair in PAIRS:
        only = gradients(model, ids(len(MIXED)), MIXED, [float(other == pair) for other in MIXED])
        for name in lander_layers(model):
            pairs = [other for other in PAIRS if layer_index(neuron_map, name) in neuron_map.layers(other)]
            touched = only[f"base_model.model.{name}.lander_blocks.default.gates"].flatten(1).any(dim=1).tolist()
            assert touched == [other == pair for other in pairs]


@pytest.mark.parametrize("kind", ["no-map", "one-pair", "several-pairs"])
@pytest.mark.parametrize("options", [{}, {"general_rank": None}, {"car": "learned"}], ids=str)
def test_only_the_adapter_requires_gradients_and_all_of_it_gets_one(
    base: PreTrainedModel, neuron_map: NeuronMap, kind: str, options: dict[str, Any]
) -> None:
    model = adapt_kind(base, neuron_map, kind, **options).train()
    trainable = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert trainable == {name for name, _ in model.named_parameters() if ".lander_blocks.default." in name}
    summed_loss(model, ids(), torch.ones(3), **route(kind)).backward()
    for name, parameter in model.named_parameters():
        assert (parameter.grad is not None) == (name in trainable), name


def test_only_the_active_adapter_requires_gradients(base: PreTrainedModel, neuron_map: NeuronMap) -> None:
    model = adapt(base, neuron_map, ["en-de"], adapter_name="one")
    model.add_adapter("two", make_config(neuron_map, ["en-fr"]))
    for name in ("one", "two", "one"):
        if name != "one" or model.active_adapter != "one":
            model.set_adapter(name)
        trainable = [key for key, parameter in model.named_parameters() if parameter.requires_grad]
        assert trainable and all(f".lander_blocks.{name}." in key for key in trainable)
        assert len(trainable) == sum(f".lander_blocks.{name}." in key for key, _ in model.named_parameters())


@pytest.mark.parametrize("general_rank", [None, 4])
def test_deltas_are_float32_on_a_bfloat16_base(
    base: PreTrainedModel, neuron_map: NeuronMap, general_rank: int | None
) -> None:
    model = adapt(base.to(torch.bfloat16), neuron_map, general_rank=general_rank).train()
    before = cloned_state(model)
    train(model, 1, language_pairs=MIXED)
    for name, parameter in model.named_parameters():
        if ".lander_blocks." in name:
            assert parameter.dtype == torch.float32
            # values that bfloat16 cannot hold
            assert not parameter.equal(parameter.to(torch.bfloat16).float()) and not parameter.equal(before[name])
        else:
            assert parameter.dtype == torch.bfloat16 and parameter.equal(before[name])
    assert logits(model, ids(), language_pairs=PAIRS).dtype == torch.bfloat16


@one_architecture
def test_deltas_can_be_left_in_the_type_of_the_base(base: PreTrainedModel, neuron_map: NeuronMap) -> None:
    model = get_peft_model(base.to(torch.bfloat16), make_config(neuron_map), autocast_adapter_dtype=False)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
    for layer in lander_layers(model).values():  # constants keep their precision
        assert layer.blocks("default").get_buffer("awareness_sums").dtype == torch.float32
    assert logits(model, ids(), language_pairs=PAIRS).isfinite().all()


# Gradient checkpointing recomputes FFNs after the call has returned


class Counter:
    """Counts the calls of the base FFNs."""

    def __init__(self, model: nn.Module) -> None:
        self.calls = 0
        for module in model.modules():
            if isinstance(module, LanderFFN):
                module.base_layer.register_forward_pre_hook(self.count)

    def count(self, *_: Any) -> None:
        self.calls += 1


ROUTES: list[tuple[str | None, dict[str, Any], str | None]] = [
    (None, {"language_pairs": MIXED}, None),
    (None, {"language_pairs": MIXED}, "en-fr"),
    ("en-de", {}, "de-en"),
    ("en-de", {}, None),
    ("en-fr", {"adapter_names": ["default", "__base__", "default", "default"]}, "en-de"),
]
"""Pair chosen before the forward, keywords of the forward, pair chosen before the backward."""


@pytest.mark.parametrize("use_reentrant", [True, False])
@pytest.mark.parametrize("routed", ROUTES, ids=str)
def test_gradient_checkpointing_keeps_the_route(
    base: PreTrainedModel, neuron_map: NeuronMap, use_reentrant: bool, routed: Any
) -> None:
    chosen, keywords, then_chosen = routed
    model = adapt(base, neuron_map).train()
    counter = Counter(model)

    def run() -> tuple[dict[str, torch.Tensor], int]:
        model.zero_grad()
        counter.calls = 0
        model.set_language_pair(chosen)
        loss = summed_loss(model, ids(len(MIXED)), torch.ones(len(MIXED)), **keywords)
        model.set_language_pair(then_chosen)
        loss.backward()
        return {key: p.grad.clone() for key, p in model.named_parameters() if p.grad is not None}, counter.calls

    model.enable_input_require_grads()
    expected, calls = run()
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": use_reentrant})
    found, more_calls = run()
    assert more_calls == 2 * calls  # it does recompute
    assert found.keys() == expected.keys() and len(found) > 0
    for key, value in expected.items():
        torch.testing.assert_close(found[key], value, rtol=1e-5, atol=1e-6 * float(value.abs().max()))


@one_architecture
@pytest.mark.parametrize("use_reentrant", [True, False])
@pytest.mark.parametrize("car", ["paper", "token", "learned"])
@pytest.mark.filterwarnings("ignore:.*changes the model's output before any training")
def test_gradient_checkpointing_with_gates(
    base: PreTrainedModel, neuron_map: NeuronMap, use_reentrant: bool, car: str
) -> None:
    model = adapt(base, neuron_map, car=car).train()
    model.enable_input_require_grads()
    expected = gradients(model, ids(len(MIXED)), MIXED)
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": use_reentrant})
    found = gradients(model, ids(len(MIXED)), MIXED)
    for key, value in expected.items():
        torch.testing.assert_close(found[key], value, rtol=1e-5, atol=1e-6 * float(value.abs().max()))


@one_architecture
def test_two_forwards_before_one_backward_under_checkpointing(base: PreTrainedModel, neuron_map: NeuronMap) -> None:
    """Each call is recomputed with its own route."""
    model = adapt(base, neuron_map).train()
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    first, second = MIXED, MIXED[::-1]
    separate = [gradients(model, ids(4), pairs) for pairs in (first, second)]
    model.zero_grad()
    losses = [summed_loss(model, ids(4), torch.ones(4), language_pairs=pairs) for pairs in (first, second)]
    torch.stack(losses).sum().backward()
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            expected = separate[0][name] + separate[1][name]
            found = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
            torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6 * float(expected.abs().max()))
