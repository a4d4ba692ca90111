"""Gates and routes: eq. 6 to 9 against FFNs written out group by group, and every way to name a pair."""

from __future__ import annotations

import copy
import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import pytest
import torch
from peft import PeftModel, get_peft_model
from torch import nn
from torch.utils.flop_counter import FlopCounterMode
from transformers import PreTrainedModel

from peft_landermt import LanderConfig, NeuronMap
from peft_landermt.errors import LanguagePairError
from peft_landermt.lander.gates import constant_gates, learned_gates, neuron_gate, token_gates
from peft_landermt.neuron_map import LayerNeurons, conditional_awareness
from peft_landermt.routed.call import Team
from peft_landermt.routed.projection import weight_of

from ..conftest import ARCHITECTURES, PAIRS, randomize_adapter
from .helpers import (
    adapt,
    base_hidden,
    dense_deltas,
    ids,
    lander_layers,
    layer_index,
    logits,
    make_config,
    naive_ffn,
    neuron_groups,
    recorded_calls,
)

MIXED = ["en-de", "en-fr", "de-en", "en-de", "de-en"]
one_architecture = pytest.mark.parametrize("architecture", ["llama"], indirect=True)
close = {"atol": 1e-5, "rtol": 1e-5}


# Equation 6 and constant gates, by hand


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
        blocks = layer.lander_blocks["default"]
        for sample, pair in enumerate(MIXED):
            x, groups = states[sample], neuron_groups(neuron_map, index, pair)
            relevant = index in neuron_map.pair_layers[pair]
            here = blocks.layout.language_pairs
            learned = blocks.gates[here.index(pair)].detach() if hasattr(blocks, "gates") and relevant else None
            factors = gates_by_formula(
                options.get("car", "off"), neuron_map, index, pair, x, base_hidden(layer, x), learned
            )
            deltas: Mapping[str, torch.Tensor] = dense_deltas(layer, neuron_map, index, pair)
            if not relevant:
                deltas = {key: torch.zeros_like(value) for key, value in deltas.items()}
            expected = naive_ffn(
                layer,
                x,
                groups,
                deltas,
                *factors,
                drop=options.get("inactive_neurons") == "drop" and relevant,
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
def test_tune_layers_adds_its_deltas_to_all_neurons(
    base: PreTrainedModel, neuron_map: NeuronMap, general_rank: int | None
) -> None:
    model = adapt(base, neuron_map, tune="layers", general_rank=general_rank)
    with recorded_calls(model) as calls:
        logits(model, ids(len(MIXED)), language_pairs=MIXED)
    for name, layer in lander_layers(model).items():
        states, residual, output = calls[name]
        blocks = layer.lander_blocks["default"]
        deltas = {key: blocks.rows("general", key).detach() for key in layer.projection_names}
        for sample, pair in enumerate(MIXED):
            relevant = layer_index(neuron_map, name) in neuron_map.pair_layers[pair]
            factor = 1.0 if relevant else 0.0
            expected = naive_ffn(
                layer,
                states[sample],
                {"all": torch.arange(layer.neurons)},
                {key: factor * value for key, value in deltas.items()},
                residual=None if residual is None else residual[sample],
            )
            torch.testing.assert_close(output[sample], expected, **close)


@one_architecture
@pytest.mark.parametrize("car", ["paper", "proportional"])
def test_constant_gates_keep_their_precision_in_bfloat16(
    base: PreTrainedModel, neuron_map: NeuronMap, car: str
) -> None:
    """A gate of 0.05 computed as 1 + (0.05 - 1) in bfloat16 would be off by 1.6%."""
    model = adapt(base.to(torch.bfloat16), neuron_map, ["en-de"], car=car)
    for name, layer in lander_layers(model).items():
        blocks = layer.blocks("default")
        blocks.get_buffer("awareness_sums").copy_(torch.tensor([[5.0, 95.0]]))
        team = Team(layer.call(), blocks, ("en-de",))
        gate = neuron_gate(blocks, team, torch.zeros(1, 1, 32, dtype=torch.bfloat16))
        assert gate is not None
        groups = neuron_groups(neuron_map, layer_index(neuron_map, name), "en-de")
        first, second = (0.05, 0.95) if car == "paper" else (0.95, 0.05)
        for group, expected in (("general", first), ("specific", second), ("inactive", 1.0)):
            wanted = torch.full((len(groups[group]),), expected)
            # half a unit in the last of bfloat16's 8 bits
            torch.testing.assert_close(gate.expand(1, 1, 64)[0, 0, groups[group]].float(), wanted, rtol=2**-8, atol=0)


_ROUTED = [
    {"car": "off"},
    {"car": "learned"},
    {"inactive_neurons": "drop"},
    {"car": "paper"},
    {"car": "proportional"},
    {"car": "token", "inactive_neurons": "drop"},
]


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
@pytest.mark.parametrize(
    ("languages", "options"),
    [
        *((("en",), options) for options in _ROUTED),
        (("en", "de"), {"car": "off"}),
        (("en", "de"), {"car": "learned"}),
        *((("en", "de"), options) for options in _ROUTED[2:]),
    ],
    ids=str,
)
def test_languages_without_specific_neurons(
    base: PreTrainedModel, neuron_map: NeuronMap, languages: tuple[str, ...], options: dict[str, Any]
) -> None:
    """Unnormalised awareness can leave a language, or a pair, without neurons of its own in a layer."""
    assert_equals_naive(base, without_specific_neurons(neuron_map, *languages), **options)


# Ways to name a pair


@pytest.mark.parametrize("options", [{}, {"car": "paper", "inactive_neurons": "drop"}, {"car": "learned"}], ids=str)
def test_rows_of_a_mixed_batch_equal_rows_alone(
    base: PreTrainedModel, neuron_map: NeuronMap, options: dict[str, Any]
) -> None:
    model = adapt(base, neuron_map, **options)
    batch = ids(len(MIXED))
    mixed = logits(model, batch, language_pairs=MIXED)
    for row, pair in enumerate(MIXED):
        alone = logits(model, batch[row : row + 1], language_pairs=[pair])
        torch.testing.assert_close(mixed[row : row + 1], alone, **close)
        model.set_language_pair(pair)
        torch.testing.assert_close(mixed[row : row + 1], logits(model, batch[row : row + 1]), **close)
    assert not torch.allclose(mixed[0], mixed[1], atol=1e-2)


@pytest.mark.parametrize("options", [{}, {"car": "paper", "inactive_neurons": "drop"}, {"car": "learned"}], ids=str)
def test_one_pair_needs_no_routing(base: PreTrainedModel, neuron_map: NeuronMap, options: dict[str, Any]) -> None:
    model = adapt(base, neuron_map, ["en-de"], **options)
    unrouted = logits(model, ids())
    torch.testing.assert_close(unrouted, logits(model, ids(), language_pairs=["en-de"] * 3), **close)
    model.set_language_pair("en-de")
    assert logits(model, ids()).equal(unrouted)


@one_architecture
def test_one_pair_of_several_equals_an_adapter_of_that_pair(base: PreTrainedModel, neuron_map: NeuronMap) -> None:
    """The blocks of a pair do not depend on which other pairs share the adapter."""
    several = adapt(base, neuron_map)
    state = {key.replace(".default", ""): value for key, value in several.state_dict().items()}
    expected = {pair: logits(several, ids(), language_pairs=[pair] * 3) for pair in PAIRS}
    for pair in PAIRS:
        one = adapt(several.unload(), neuron_map, [pair], adapter_name="one", seed=None)
        with torch.no_grad():
            for name, parameter in one.named_parameters():
                if ".one." in name:
                    parameter.copy_(state[name.replace(".one", "")])
        torch.testing.assert_close(logits(one, ids()), expected[pair], **close)
        several = one


@pytest.mark.parametrize(
    "call",
    [
        "forward",
        "positional",
    ],
)
def test_model_without_a_task_type(base: PreTrainedModel, neuron_map: NeuronMap, call: str) -> None:
    """PEFT's plain PeftModel calls the base model itself."""
    model = get_peft_model(base, LanderConfig(neuron_map=neuron_map)).eval()
    randomize_adapter(model)
    assert type(model) is PeftModel
    for row, pair in enumerate(PAIRS):
        model.set_language_pair(pair)
        if call == "generate":
            options = {"max_new_tokens": 3, "min_new_tokens": 3, "attention_mask": torch.ones(3, 8)}
            expected = model.generate(input_ids=ids(), **options)[row]
            assert model.generate(input_ids=ids(), language_pairs=PAIRS, **options)[row].equal(expected)
        else:
            call_with = (ids(),) if call == "positional" else ()
            keywords = {} if call == "positional" else {"input_ids": ids()}
            found = model(*call_with, language_pairs=PAIRS, **keywords).logits[row]
            torch.testing.assert_close(found, logits(model, ids())[row], **close)


@one_architecture
def test_set_language_pair_and_none(base: PreTrainedModel, neuron_map: NeuronMap) -> None:
    model = adapt(base, neuron_map)
    by_keyword = {pair: logits(model, ids(), language_pairs=[pair] * 3) for pair in PAIRS}
    for pair in PAIRS:
        model.set_language_pair(pair)
        torch.testing.assert_close(logits(model, ids()), by_keyword[pair], **close)
    # the keyword comes first, and leaves the choice as it was
    torch.testing.assert_close(logits(model, ids(), language_pairs=["en-de"] * 3), by_keyword["en-de"], **close)
    torch.testing.assert_close(logits(model, ids()), by_keyword["en-fr"], **close)
    model.set_language_pair(None)
    with pytest.raises(LanguagePairError, match=r"holds en-de, de-en, en-fr; pass language_pairs=\[\.\.\.\]"):
        logits(model, ids())


@one_architecture
@pytest.mark.parametrize("pair", ["fr-en", "en-it", "nonsense"])
def test_set_language_pair_refuses_unknown_pairs(base: PreTrainedModel, neuron_map: NeuronMap, pair: str) -> None:
    model = adapt(base, neuron_map)
    model.set_language_pair("en-de")
    chosen = logits(model, ids())
    with pytest.raises(LanguagePairError, match=f"'{pair}': adapter 'default' holds en-de, de-en, en-fr"):
        model.set_language_pair(pair)
    assert logits(model, ids()).equal(chosen)


@one_architecture
@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["en-de", "de-en"], "each of the 3 samples"),
        (PAIRS * 2, "each of the 3 samples"),
        ("en-de", "'en-de': expected a list with one entry per sample"),
        (["en-de", "de-en", "fr-en"], "'fr-en': adapter 'default' holds en-de, de-en, en-fr"),
        (["en-de", "de-en", None], "None: adapter 'default' holds en-de, de-en, en-fr"),
        (None, r"holds en-de, de-en, en-fr; pass language_pairs=\[\.\.\.\]"),
    ],
)
@pytest.mark.parametrize("call", ["forward", "generate"])
def test_wrong_language_pairs(
    base: PreTrainedModel, neuron_map: NeuronMap, given: Any, message: str, call: str
) -> None:
    model = adapt(base, neuron_map)
    expected = logits(model, ids(), language_pairs=PAIRS)
    with pytest.raises(LanguagePairError, match=message):
        if call == "forward":
            model(input_ids=ids(), language_pairs=given)
        else:
            model.generate(input_ids=ids(), language_pairs=given, max_new_tokens=1)
    assert logits(model, ids(), language_pairs=PAIRS).equal(expected)  # an error leaves nothing behind


@one_architecture
@pytest.mark.parametrize("given", [[], ["en-de"], ["en-de", "de-en"]], ids=len)
@pytest.mark.parametrize(
    "call",
    [
        "input_ids",
        "inputs_embeds",
        "generate",
    ],
)
def test_divisor_of_the_batch_size_is_no_substitute_for_one_pair_per_sample(
    base: PreTrainedModel, neuron_map: NeuronMap, given: list[str], call: str
) -> None:
    """Two pairs for four samples must not be spread over them silently, and no pairs must not mean the base."""
    model = adapt(base, neuron_map)
    with pytest.raises(LanguagePairError, match="each of the 4 samples"):
        if call == "generate":
            model.generate(input_ids=ids(4), language_pairs=given, max_new_tokens=1)
        else:
            states = ids(4) if call == "input_ids" else model.get_input_embeddings()(ids(4))
            model(**{call: states}, language_pairs=given)


@one_architecture
@pytest.mark.parametrize("named", [{"language_pairs": []}, {"adapter_names": []}], ids=str)
def test_nothing_named_where_the_batch_size_cannot_be_told(
    base: PreTrainedModel, neuron_map: NeuronMap, named: dict[str, list[str]]
) -> None:
    """`generate` makes its first token itself; an empty list is refused before it does."""
    model = adapt(base, neuron_map)
    with pytest.raises(LanguagePairError, match=r"\[\]: give one entry for each sample"):
        model.generate(**named, max_new_tokens=1, bos_token_id=1)


@one_architecture
def test_pairs_of_an_adapter_without_pairs(base: PreTrainedModel) -> None:
    model = adapt(base)
    with pytest.raises(LanguagePairError, match="adapter 'default' was made without language pairs"):
        model(input_ids=ids(), language_pairs=PAIRS)
    with pytest.raises(LanguagePairError, match="adapter 'default' was made without language pairs"):
        model.set_language_pair("en-de")


def two_adapters(base: PreTrainedModel, neuron_map: NeuronMap, **options: Any) -> Any:
    model = adapt(base, neuron_map, ["en-de"], adapter_name="en-de", **options)
    model.add_adapter("en-fr", make_config(neuron_map, ["en-fr"], **options))
    model.set_adapter("en-fr")
    randomize_adapter(model, seed=2)
    return model.eval()


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"general_rank": None},
        {"car": "paper", "inactive_neurons": "drop"},
        {"car": "learned"},
        {"car": "learned", "general_rank": None},
    ],
    ids=str,
)
@pytest.mark.filterwarnings("ignore:.*changes the model's output before any training")
def test_adapter_names_per_sample(base: PreTrainedModel, neuron_map: NeuronMap, options: dict[str, Any]) -> None:
    plain = logits(base, ids(4))
    model = two_adapters(base, neuron_map, **options)
    names = ["en-fr", "__base__", "en-de", "en-fr"]
    mixed = logits(model, ids(4), adapter_names=names)
    for row, name in enumerate(names):
        if name == "__base__":
            expected = plain
        else:
            model.set_adapter(name)
            expected = logits(model, ids(4))
            assert not torch.allclose(expected, plain, atol=1e-2)
        torch.testing.assert_close(mixed[row], expected[row], **close)
    torch.testing.assert_close(logits(model, ids(4), adapter_names=["__base__"] * 4), plain, **close)
    named = ["en-fr", "en-de", "en-de", "en-fr"]
    torch.testing.assert_close(
        logits(model, ids(4), adapter_names=named, language_pairs=named)[[0, 2, 3]], mixed[[0, 2, 3]], **close
    )


@one_architecture
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


@one_architecture
def test_adapter_names_and_pairs_together(base: PreTrainedModel, neuron_map: NeuronMap) -> None:
    """One adapter of two pairs, one without any map, and the base, in one batch."""
    plain = logits(base, ids(4))
    model = adapt(base, neuron_map, ["en-de", "en-fr"], adapter_name="two")
    model.add_adapter("whole", make_config())
    model.set_adapter("whole")
    randomize_adapter(model, seed=2)
    whole = logits(model, ids(4))
    model.set_adapter("two")
    model.set_language_pair("en-fr")
    two = logits(model, ids(4))
    expected = torch.stack([two[0], whole[1], plain[2], two[3]])
    names = ["two", "whole", "__base__", "two"]
    torch.testing.assert_close(logits(model, ids(4), adapter_names=names), expected, **close)


@one_architecture
@pytest.mark.parametrize(
    ("keywords", "error", "message"),
    [
        (
            {"adapter_names": ["en-de", "xx", "yy"]},
            ValueError,
            r"Trying to infer with non-existing adapter\(s\): xx, yy",
        ),
        ({"adapter_names": ["en-de", "en-fr"]}, LanguagePairError, "each of the 3 samples"),
        ({"adapter_names": "en-de"}, LanguagePairError, "adapter_names='en-de': expected a list"),
        (
            {"adapter_names": ["en-de"] * 3, "language_pairs": ["en-de", "en-de", "en-fr"]},
            LanguagePairError,
            "'en-fr': adapter 'en-de' holds en-de",
        ),
        (
            {"adapter_names": ["en-de"] * 3, "language_pairs": ["en-de"] * 6},
            LanguagePairError,
            "language_pairs=6",
        ),
    ],
)
def test_wrong_adapter_names(
    base: PreTrainedModel, neuron_map: NeuronMap, keywords: dict[str, Any], error: type[Exception], message: str
) -> None:
    model = two_adapters(base, neuron_map)
    with pytest.raises(error, match=message):
        model(input_ids=ids(), **keywords)


# Mixed precision


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


@pytest.mark.parametrize("architecture", ["llama", "bloom"], indirect=True)
@pytest.mark.parametrize(
    "car",
    [
        "off",
        "token",
        "paper",
        "learned",
    ],
)
def test_autocast_copies_no_rows_between_types(
    base: PreTrainedModel, neuron_map: NeuronMap, car: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """CPU autocast promotes the operands of index_copy, CUDA autocast does not: there, other types are an error."""
    model = adapt(base, neuron_map, car=car)
    index_copy, mismatches, calls = torch.Tensor.index_copy, [], []

    def strict(self: torch.Tensor, dim: int, index: torch.Tensor, source: torch.Tensor) -> torch.Tensor:
        calls.append(source.dtype)
        if self.dtype != source.dtype:
            mismatches.append((self.dtype, source.dtype))
        return index_copy(self, dim, index, source)

    monkeypatch.setattr(torch.Tensor, "index_copy", strict)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits(model, ids(len(MIXED)), language_pairs=MIXED)
    assert calls and mismatches == []


# Generation


@pytest.mark.parametrize(
    "search",
    [
        {},
        {"num_beams": 3},
        {"num_beams": 3, "num_return_sequences": 2},
        {"num_beams": 2, "use_cache": False},
    ],
    ids=str,
)
@pytest.mark.parametrize("car", ["off", "token"])
def test_generate_with_mixed_pairs_equals_row_by_row(
    base: PreTrainedModel, neuron_map: NeuronMap, car: str, search: dict[str, Any]
) -> None:
    model = adapt(base, neuron_map, car=car)
    options = {"max_new_tokens": 5, "min_new_tokens": 5, "do_sample": False, **search}
    together = model.generate(input_ids=ids(), attention_mask=torch.ones(3, 8), language_pairs=PAIRS, **options)
    alone = []
    for row, pair in enumerate(PAIRS):
        model.set_language_pair(pair)
        alone.append(model.generate(input_ids=ids()[row : row + 1], attention_mask=torch.ones(1, 8), **options))
    assert together.equal(torch.cat(alone))
    assert together.shape == (3 * search.get("num_return_sequences", 1), 8 + 5)


@one_architecture
def test_generate_with_adapter_names_and_beams(base: PreTrainedModel, neuron_map: NeuronMap) -> None:
    options = {"max_new_tokens": 5, "min_new_tokens": 5, "do_sample": False, "num_beams": 2}
    plain = base.generate(ids(), attention_mask=torch.ones(3, 8), **options)
    model = two_adapters(base, neuron_map)
    names = ["en-fr", "__base__", "en-de"]
    together = model.generate(input_ids=ids(), attention_mask=torch.ones(3, 8), adapter_names=names, **options)
    assert together[1].equal(plain[1])
    for row in (0, 2):
        model.set_adapter(names[row])
        alone = model.generate(input_ids=ids()[row : row + 1], attention_mask=torch.ones(1, 8), **options)
        assert together[row].equal(alone[0])


@one_architecture
def test_padding_of_other_rows_does_not_matter(base: PreTrainedModel, neuron_map: NeuronMap) -> None:
    """Left padding, as in generation: a short sentence next to a long one of another pair."""
    model = adapt(base, neuron_map)
    batch, mask = ids(2), torch.ones(2, 8, dtype=torch.long)
    batch[0, :3], mask[0, :3] = 0, 0
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    mixed = logits(model, batch, attention_mask=mask, position_ids=positions, language_pairs=["en-fr", "de-en"])
    alone = logits(model, batch[:1, 3:], language_pairs=["en-fr"])
    torch.testing.assert_close(mixed[0, 3:], alone[0], **close)


def test_all_architectures_are_covered() -> None:
    """The naive FFN of these tests knows these three activations."""
    assert ARCHITECTURES == ("llama", "gemma3", "bloom")


@one_architecture
def test_generate_folds_a_weight_once(base: PreTrainedModel, neuron_map: NeuronMap) -> None:
    """Weights with deltas folded in are kept while `generate` runs, and made anew for the next call."""
    model = adapt(base, neuron_map, ["en-de"], general_rank=None)
    options = {"max_new_tokens": 4, "min_new_tokens": 4, "do_sample": False}
    with pytest.MonkeyPatch.context() as patch:
        folded: list[nn.Module] = []

        def counted(layer: nn.Module, *updates: Any) -> torch.Tensor:
            folded.append(layer)
            return weight_of(layer, *updates)

        patch.setattr("peft_landermt.routed.projection.weight_of", counted)
        first = model.generate(input_ids=ids(), **options)
    projections = [each.base_layer for ffn in lander_layers(model).values() for each in ffn.projections.values()]
    assert len(folded) == len(projections) == 3 * len(neuron_map.layers("en-de")) and {*folded} == {*projections}
    expected = copy.deepcopy(model)
    expected.merge_adapter()
    assert expected.generate(input_ids=ids(), **options).equal(first)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.data.mul_(-1)  # does not count as a change for autograd
    expected = copy.deepcopy(model)
    expected.merge_adapter()
    changed = model.generate(input_ids=ids(), **options)
    assert expected.generate(input_ids=ids(), **options).equal(changed) and not changed.equal(first)
