"""What PEFT users do with an adapter: save, load, swap, delete, merge, unload, and what must be refused."""

from __future__ import annotations

import copy
import dataclasses
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import (
    LoraConfig,
    PeftModel,
    get_peft_model,
    get_peft_model_state_dict,
    inject_adapter_in_model,
    set_peft_model_state_dict,
)
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, PreTrainedModel

from peft_landermt import LanderConfig, LanderFFN, LanderModel, NeuronMap, detect_neurons
from peft_landermt.errors import AdapterError, ArchitectureError, ConfigError, LanguagePairError, NeuronMapError

from ..conftest import PAIRS, SENTENCES, build_model, randomize_adapter
from .helpers import (
    KINDS,
    adapt,
    adapt_kind,
    cloned_state,
    dense_deltas,
    ids,
    lander_layers,
    layer_index,
    logits,
    make_config,
    route,
    same_state,
)

WEIGHTS = "adapter_model.safetensors"
NAMES = ["default", "de", "en-de", "1", "er"]
"""Names that people give, that are parts of `lander_`, and that look like a layer number."""
one_architecture = pytest.mark.parametrize("architecture", ["llama"], indirect=True)
every_kind = pytest.mark.parametrize("kind", KINDS)
loud = pytest.mark.filterwarnings("error:.*missing adapter keys")


@pytest.fixture
def fresh(architecture: str) -> Callable[..., PreTrainedModel]:
    """Makes a base as `base` is."""
    return lambda seed=0, **options: build_model(architecture, seed, **options)


def unmerged_weights(model: PeftModel) -> dict[str, torch.Tensor]:
    """Weights of the base model inside, by their names in it."""
    state = model.get_base_model().state_dict()
    return {key.replace(".base_layer", ""): value.clone() for key, value in state.items() if ".lander_" not in key}


# Saving and loading


@loud
@every_kind
@pytest.mark.parametrize("low_cpu_mem_usage", [False, True])
@pytest.mark.parametrize("options", [{}, {"general_rank": None}, {"car": "learned"}], ids=str)
def test_save_and_load(
    base: PreTrainedModel,
    neuron_map: NeuronMap,
    fresh: Any,
    tmp_path: Path,
    kind: str,
    low_cpu_mem_usage: bool,
    options: dict[str, Any],
) -> None:
    model = adapt_kind(base, neuron_map, kind, **options)
    expected = logits(model, ids(), **route(kind))
    model.save_pretrained(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"adapter_config.json", WEIGHTS, "README.md"}
    loaded = PeftModel.from_pretrained(fresh(), tmp_path, low_cpu_mem_usage=low_cpu_mem_usage)
    assert isinstance(loaded.base_model, LanderModel)
    assert logits(loaded, ids(), **route(kind)).equal(expected)
    assert same_state(loaded.state_dict(), model.state_dict())
    assert not any(parameter.requires_grad for parameter in loaded.parameters())
    trainable = PeftModel.from_pretrained(fresh(), tmp_path, is_trainable=True)
    assert {name for name, parameter in trainable.named_parameters() if parameter.requires_grad} == {
        name for name, parameter in model.named_parameters() if parameter.requires_grad
    }


@pytest.mark.parametrize("car", ["paper", "proportional", "token"])
@one_architecture
def test_save_and_load_what_gates_are_made_of(
    base: PreTrainedModel, neuron_map: NeuronMap, fresh: Any, tmp_path: Path, car: str
) -> None:
    model = adapt(base, neuron_map, car=car, inactive_neurons="drop")
    model.save_pretrained(tmp_path)
    for low_cpu_mem_usage in (False, True):
        loaded = PeftModel.from_pretrained(fresh(), tmp_path, low_cpu_mem_usage=low_cpu_mem_usage)
        assert same_state(loaded.state_dict(), model.state_dict())
        expected = logits(model, ids(), language_pairs=PAIRS)
        assert logits(loaded, ids(), language_pairs=PAIRS).equal(expected)


@one_architecture
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("low_cpu_mem_usage", [False, True])
def test_save_and_load_on_a_half_precision_base(
    base: PreTrainedModel, neuron_map: NeuronMap, fresh: Any, tmp_path: Path, dtype: Any, low_cpu_mem_usage: bool
) -> None:
    model = adapt(base.to(dtype), neuron_map, verify_base=dtype == torch.bfloat16, save_dtype="fp32")
    model.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(fresh().to(dtype), tmp_path, low_cpu_mem_usage=low_cpu_mem_usage)
    assert same_state(loaded.state_dict(), model.state_dict())
    expected = logits(model, ids(), language_pairs=PAIRS)
    assert expected.dtype == dtype and logits(loaded, ids(), language_pairs=PAIRS).equal(expected)
    mask = torch.ones(3, 8, dtype=torch.long)
    generated = loaded.generate(input_ids=ids(), attention_mask=mask, language_pairs=PAIRS, max_new_tokens=2)
    assert generated.shape == (3, 10)


@one_architecture
def test_file_holds_rows_and_their_indices_only(base: PreTrainedModel, neuron_map: NeuronMap, tmp_path: Path) -> None:
    """The format of DESIGN, section 3: shapes follow from the neuron map."""
    adapt(base, neuron_map, ["en-de"], general_rank=None).save_pretrained(tmp_path)
    expected = {}
    for layer in neuron_map.layers("en-de"):
        prefix = f"base_model.model.{neuron_map.neurons[layer].name}.lander_blocks"
        blocks = {"general": neuron_map.general(layer)}
        blocks |= {language: neuron_map.specific(layer, language) for language in ("de", "en")}
        for block, neurons in blocks.items():
            expected[f"{prefix}.{block}_neurons"] = (torch.int32, (len(neurons),))
            for projection in ("gate_proj", "up_proj", "down_proj"):
                expected[f"{prefix}.{block}_{projection}"] = (torch.float32, (len(neurons), 32))
        expected[f"{prefix}.awareness_sums"] = (torch.float32, (1, 2))
    found = load_file(tmp_path / WEIGHTS)
    assert {key: (value.dtype, tuple(value.shape)) for key, value in found.items()} == expected
    for layer in neuron_map.layers("en-de"):
        prefix = f"base_model.model.{neuron_map.neurons[layer].name}.lander_blocks"
        assert found[f"{prefix}.general_neurons"].tolist() == neuron_map.general(layer).tolist()
        sums = torch.tensor([neuron_map.awareness_sums(layer, "en-de")])
        torch.testing.assert_close(found[f"{prefix}.awareness_sums"], sums)


@every_kind
def test_state_dict_round_trip(base: PreTrainedModel, neuron_map: NeuronMap, fresh: Any, kind: str) -> None:
    model = adapt_kind(base, neuron_map, kind)
    state = get_peft_model_state_dict(model)
    assert all(".lander_blocks." in key and "default" not in key for key in state)
    other = adapt_kind(fresh(), neuron_map, kind, seed=2)
    assert not logits(other, ids(), **route(kind)).equal(logits(model, ids(), **route(kind)))
    result = set_peft_model_state_dict(other, state)
    assert result.unexpected_keys == [] and not any("lander" in key for key in result.missing_keys)
    assert same_state(get_peft_model_state_dict(other), state)
    assert logits(other, ids(), **route(kind)).equal(logits(model, ids(), **route(kind)))


@one_architecture
@every_kind
def test_deepcopy_is_a_model_of_its_own(base: PreTrainedModel, neuron_map: NeuronMap, kind: str) -> None:
    model = adapt_kind(base, neuron_map, kind)
    expected = logits(model, ids(), **route(kind))
    twin = copy.deepcopy(model)
    assert logits(twin, ids(), **route(kind)).equal(expected)
    randomize_adapter(twin, seed=3)
    if kind == "several-pairs":
        twin.set_language_pair("en-de")
        with pytest.raises(LanguagePairError):
            logits(model, ids())
    assert not logits(twin, ids(), **route(kind)).equal(expected)
    assert logits(model, ids(), **route(kind)).equal(expected)


# Several adapters side by side


def side_by_side(base: PreTrainedModel, neuron_map: NeuronMap, kind: str, names: list[str]) -> PeftModel:
    """One adapter per name, each with other values; the last is active."""
    model = adapt_kind(base, neuron_map, kind, adapter_name=names[0])
    for seed, name in enumerate(names[1:], 2):
        model.add_adapter(name, make_config(None if kind == "no-map" else neuron_map, KINDS[kind]))
        model.set_adapter(name)
        randomize_adapter(model, seed=seed)
    return model.eval()


@loud
@every_kind
def test_names_side_by_side(
    base: PreTrainedModel, neuron_map: NeuronMap, fresh: Any, tmp_path: Path, kind: str
) -> None:
    """Each adapter saves what it would save alone, and loads exactly, alone and next to the others."""
    model = side_by_side(base, neuron_map, kind, NAMES)
    expected = {}
    for name in NAMES:
        model.set_adapter(name)
        expected[name] = logits(model, ids(), **route(kind))
    assert len({float(value.sum()) for value in expected.values()}) == len(NAMES)
    model.save_pretrained(tmp_path)
    folders = {name: tmp_path if name == "default" else tmp_path / name for name in NAMES}
    keys = get_peft_model_state_dict(adapt_kind(fresh(), neuron_map, kind)).keys()
    for name, folder in folders.items():
        assert load_file(folder / WEIGHTS).keys() == keys
        alone = PeftModel.from_pretrained(fresh(), folder, adapter_name=name)
        assert logits(alone, ids(), **route(kind)).equal(expected[name])
    together = PeftModel.from_pretrained(fresh(), folders["1"], adapter_name="1")
    for name in ("en-de", "default", "er", "de"):
        result = together.load_adapter(folders[name], name)
        assert result.unexpected_keys == []
    for name in NAMES:
        together.set_adapter(name)
        assert logits(together, ids(), **route(kind)).equal(expected[name])
        assert same_state(
            get_peft_model_state_dict(together, adapter_name=name), get_peft_model_state_dict(model, adapter_name=name)
        )


@one_architecture
@pytest.mark.parametrize("kind", ["no-map", "several-pairs"])
@pytest.mark.parametrize("name", ["second", "en-de", "de", "er", "1"])
def test_loading_a_second_adapter_reports_no_missing_keys(
    base: PreTrainedModel, neuron_map: NeuronMap, fresh: Any, tmp_path: Path, kind: str, name: str
) -> None:
    adapt_kind(base, neuron_map, kind).save_pretrained(tmp_path)
    model = PeftModel.from_pretrained(fresh(), tmp_path)
    for low_cpu_mem_usage, suffix in ((False, ""), (True, "_meta")):
        result = model.load_adapter(tmp_path, name + suffix, low_cpu_mem_usage=low_cpu_mem_usage)
        assert (result.missing_keys, result.unexpected_keys) == ([], [])


@every_kind
def test_set_adapter_swaps(base: PreTrainedModel, neuron_map: NeuronMap, kind: str) -> None:
    model = side_by_side(base, neuron_map, kind, ["x", "y"])
    second = logits(model, ids(), **route(kind))
    model.set_adapter("x")
    first = logits(model, ids(), **route(kind))
    assert not torch.allclose(first, second, atol=1e-2)
    for name, expected in (("y", second), ("x", first), ("y", second)):
        model.set_adapter(name)
        assert logits(model, ids(), **route(kind)).equal(expected)


@every_kind
def test_delete_adapter(base: PreTrainedModel, neuron_map: NeuronMap, kind: str) -> None:
    model = side_by_side(base, neuron_map, kind, ["x", "y"])
    model.set_adapter("x")
    expected = logits(model, ids(), **route(kind))
    model.delete_adapter("y")
    assert logits(model, ids(), **route(kind)).equal(expected)
    assert list(model.peft_config) == ["x"] and not any(".y." in key for key in model.state_dict())
    with pytest.raises(ValueError, match="Adapter y does not exist"):
        model.delete_adapter("y")
    model.add_adapter("y", make_config(neuron_map, ["de-en"]))  # the name is free again, for other pairs
    model.set_adapter("y")
    assert logits(model, ids()).shape == expected.shape


@one_architecture
def test_delete_the_active_adapter_moves_on_to_the_other(base: PreTrainedModel, neuron_map: NeuronMap) -> None:
    model = side_by_side(base, neuron_map, "one-pair", ["x", "y"])
    model.set_adapter("x")
    expected = logits(model, ids())
    model.set_adapter("y")
    with pytest.warns(UserWarning, match="Setting active adapter to x"):
        model.delete_adapter("y")
    assert model.base_model.active_adapters == ["x"]
    assert logits(model, ids()).equal(expected)


def disjoint_pairs(neuron_map: NeuronMap) -> NeuronMap:
    """The map with en-de in layers 0 and 1, de-en in layers 2 and 3."""
    return dataclasses.replace(neuron_map, pair_layers={"en-de": (0, 1), "de-en": (2, 3)})


@one_architecture
@pytest.mark.filterwarnings("ignore:Adapter .* was active which is now deleted")
@pytest.mark.parametrize(
    ("deleted", "kept"),
    [
        ("x", "y"),
        ("y", "x"),
    ],
)
def test_delete_the_active_adapter_of_other_layers(
    base: PreTrainedModel, neuron_map: NeuronMap, deleted: str, kept: str
) -> None:
    """Adapters of two pairs share no layer: all layers must agree on which adapter is active afterwards."""
    model = adapt(base, disjoint_pairs(neuron_map), ["en-de"], adapter_name="x")
    model.add_adapter("y", make_config(disjoint_pairs(neuron_map), ["de-en"]))
    model.set_adapter("y")
    randomize_adapter(model, seed=2)
    model.set_adapter(kept)
    expected = logits(model, ids())
    model.set_adapter(deleted)
    model.delete_adapter(deleted)
    assert model.base_model.active_adapters == [kept] and model.active_adapter == kept
    assert logits(model, ids()).equal(expected)


@one_architecture
@every_kind
def test_delete_refuses_a_merged_adapter(base: PreTrainedModel, neuron_map: NeuronMap, kind: str) -> None:
    model = adapt_kind(base, neuron_map, kind)
    choose(model, kind)
    model.merge_adapter()
    with pytest.raises(ValueError, match="merged"):
        model.delete_adapter("default")
    model.unmerge_adapter()
    model.delete_adapter("default")


# Several active adapters


def dense_sum(model: PeftModel, neuron_map: NeuronMap, pairs: dict[str, str]) -> dict[str, torch.Tensor]:
    """Base weights plus the deltas of all adapters, by their names in the base model."""
    weights = unmerged_weights(model)
    for name, layer in lander_layers(model).items():
        index = layer_index(neuron_map, name)
        for adapter, pair in pairs.items():
            if adapter in layer.lander_blocks:
                view = type("View", (), {"lander_blocks": {"default": layer.lander_blocks[adapter]}})()
                view.projection_names, view.neurons, view.width = layer.projection_names, layer.neurons, layer.width
                for projection, delta in dense_deltas(view, neuron_map, index, pair).items():
                    weights[f"{name}.{projection}.weight"] += delta.t() if projection == layer.output_name else delta
    return weights


@pytest.mark.parametrize("general_rank", [None, 4])
def test_several_active_adapters_add_up(
    base: PreTrainedModel, neuron_map: NeuronMap, fresh: Any, general_rank: int | None
) -> None:
    model = adapt(base, neuron_map, ["en-de"], adapter_name="x", general_rank=general_rank)
    model.add_adapter("y", make_config(neuron_map, ["en-fr"], general_rank=general_rank))
    model.set_adapter("y")
    randomize_adapter(model, seed=2)
    weights = dense_sum(model, neuron_map, {"x": "en-de", "y": "en-fr"})
    reference = fresh()
    reference.load_state_dict(weights)
    expected = logits(reference, ids())
    model.base_model.set_adapter(["x", "y"])
    torch.testing.assert_close(logits(model, ids()), expected, atol=1e-4, rtol=1e-4)
    model.merge_adapter()
    torch.testing.assert_close(logits(model, ids()), expected, atol=1e-4, rtol=1e-4)
    for key, value in unmerged_weights(model).items():
        torch.testing.assert_close(value, weights[key])


@one_architecture
@pytest.mark.filterwarnings("ignore:.*changes the model's output before any training")
@pytest.mark.parametrize(
    "options", [{"car": "paper"}, {"car": "token"}, {"car": "learned"}, {"inactive_neurons": "drop"}], ids=str
)
def test_adapters_that_route_neurons_are_not_combined(
    base: PreTrainedModel, neuron_map: NeuronMap, options: dict[str, Any]
) -> None:
    model = adapt(base, neuron_map, ["en-de"], adapter_name="x")
    model.add_adapter("y", make_config(neuron_map, ["en-fr"], **options))
    model.base_model.set_adapter(["x", "y"])
    before = cloned_state(model)
    message = r"active_adapters=\['x', 'y'\]: adapter 'y' routes neurons .* activate one adapter at a time"
    with pytest.raises(ConfigError, match=message):
        logits(model, ids())
    with pytest.raises(ConfigError):
        model.merge_adapter()
    assert same_state(model.state_dict(), before)


# Merging


def choose(model: PeftModel, kind: str, pair: str = "en-fr") -> None:
    if kind == "several-pairs":
        model.set_language_pair(pair)


MERGED: list[tuple[str, dict[str, Any]]] = [
    *((kind, options) for kind in KINDS for options in ({}, {"general_rank": None})),
    *(
        (kind, options)
        for kind in ("one-pair", "several-pairs")
        for options in (
            {"car": "paper", "inactive_neurons": "drop"},
            {"car": "proportional", "tune": "specific"},
            {"tune": "layers"},
        )
    ),
]


@pytest.mark.parametrize(("kind", "options"), MERGED, ids=str)
def test_merged_logits_equal_unmerged_ones(
    base: PreTrainedModel, neuron_map: NeuronMap, kind: str, options: dict[str, Any]
) -> None:
    model = adapt_kind(base, neuron_map, kind, **options)
    state = cloned_state(model)
    for pair in PAIRS if kind == "several-pairs" else PAIRS[:1]:
        choose(model, kind, pair)
        expected = logits(model, ids())
        model.merge_adapter(safe_merge=pair == "de-en")
        torch.testing.assert_close(logits(model, ids()), expected, atol=1e-4, rtol=1e-4)
        assert not same_state(model.state_dict(), state)
        model.unmerge_adapter()
        assert logits(model, ids()).equal(expected)
    assert same_state(model.state_dict(), state)


@every_kind
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_three_cycles_of_merging_restore_every_bit(
    base: PreTrainedModel, neuron_map: NeuronMap, kind: str, dtype: torch.dtype
) -> None:
    model = adapt_kind(base.to(dtype), neuron_map, kind)
    state = cloned_state(model)
    merged = []
    for cycle in range(3):
        choose(model, kind)
        model.merge_adapter(safe_merge=cycle == 1)
        merged.append(unmerged_weights(model))
        assert {key: value.dtype for key, value in model.state_dict().items()} == {
            key: value.dtype for key, value in state.items()
        }
        model.unmerge_adapter()
        assert same_state(model.state_dict(), state)
    assert same_state(merged[0], merged[1]) and same_state(merged[0], merged[2])
    assert not same_state(merged[0], unmerged_weights(model))


@one_architecture
def test_merging_rounds_once_in_bfloat16(base: PreTrainedModel, neuron_map: NeuronMap) -> None:
    model = adapt(base.to(torch.bfloat16), neuron_map, ["en-de"])
    expected = dense_sum_float32(model, neuron_map)
    model.merge_adapter()
    found = unmerged_weights(model)
    for key, value in expected.items():
        assert found[key].dtype == torch.bfloat16 and found[key].equal(value.to(torch.bfloat16)), key


def dense_sum_float32(model: PeftModel, neuron_map: NeuronMap) -> dict[str, torch.Tensor]:
    expected = {key: value.float() for key, value in unmerged_weights(model).items()}
    for name, layer in lander_layers(model).items():
        for projection, delta in dense_deltas(layer, neuron_map, layer_index(neuron_map, name), "en-de").items():
            expected[f"{name}.{projection}.weight"] += delta.t() if projection == layer.output_name else delta
    return expected


@every_kind
@pytest.mark.parametrize("merged_before", [False, True])
def test_merge_and_unload_gives_a_plain_model(
    base: PreTrainedModel, neuron_map: NeuronMap, tmp_path: Path, kind: str, merged_before: bool
) -> None:
    keys, kinds = list(base.state_dict()), [type(module) for module in base.modules()]
    model = adapt_kind(base, neuron_map, kind)
    choose(model, kind)
    expected = logits(model, ids())
    if merged_before:
        model.merge_adapter()
        with pytest.warns(UserWarning, match="All adapters are already merged"):
            plain = model.merge_and_unload()
    else:
        plain = model.merge_and_unload(safe_merge=True)
    torch.testing.assert_close(logits(plain, ids()), expected, atol=1e-4, rtol=1e-4)
    assert list(plain.state_dict()) == keys
    assert [type(module) for module in plain.modules()] == kinds
    plain.save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert type(loaded) is type(plain) and logits(loaded, ids()).equal(logits(plain, ids()))


@every_kind
@pytest.mark.parametrize("merged_before", [False, True])
def test_unload_gives_the_base_back(
    base: PreTrainedModel, neuron_map: NeuronMap, kind: str, merged_before: bool
) -> None:
    expected, state, kinds = logits(base, ids()), cloned_state(base), [type(module) for module in base.modules()]
    model = adapt_kind(base, neuron_map, kind)
    choose(model, kind)
    if merged_before:
        model.merge_adapter()
    plain = model.unload()
    assert plain is base and list(plain.state_dict()) == list(state)
    assert same_state(plain.state_dict(), state) and logits(plain, ids()).equal(expected)
    assert [type(module) for module in plain.modules()] == kinds


@one_architecture
@every_kind
def test_merging_twice_warns_and_changes_nothing(base: PreTrainedModel, neuron_map: NeuronMap, kind: str) -> None:
    model = adapt_kind(base, neuron_map, kind)
    choose(model, kind)
    model.merge_adapter()
    merged = cloned_state(model)
    with pytest.warns(UserWarning, match="All adapters are already merged, nothing to do"):
        model.merge_adapter()
    assert same_state(model.state_dict(), merged)
    model.unmerge_adapter()
    with pytest.warns(UserWarning, match="Already unmerged"):
        model.unmerge_adapter()


def test_safe_merge_finds_nan_before_anything_is_written(base: PreTrainedModel, neuron_map: NeuronMap) -> None:
    model = adapt(base, neuron_map, ["en-de"])
    last = list(lander_layers(model).values())[-1]
    with torch.no_grad():
        last.lander_blocks["default"].get_parameter(f"de_{last.output_name}")[-1, -1] = float("nan")
    before = unmerged_weights(model)
    message = "NaNs detected in the merged weights. The adapter default seems to be broken"
    for merge in (model.merge_adapter, model.merge_and_unload):
        with pytest.raises(ValueError, match=message):
            merge(safe_merge=True)
        assert same_state(unmerged_weights(model), before)
        assert not any(layer.merged for layer in lander_layers(model).values())
    model.merge_adapter()  # unchecked, as PEFT does
    assert not all(value.isfinite().all() for value in unmerged_weights(model).values())
    model.unmerge_adapter()
    assert same_state(unmerged_weights(model), before)


@pytest.mark.parametrize("car", ["token", "learned"])
def test_gates_that_depend_on_the_input_are_not_merged(base: PreTrainedModel, neuron_map: NeuronMap, car: str) -> None:
    model = adapt(base, neuron_map, ["en-de"], car=car)
    expected, before = logits(model, ids()), cloned_state(model)
    for merge in (model.merge_adapter, model.merge_and_unload, lambda: model.merge_adapter(safe_merge=True)):
        with pytest.raises(ConfigError, match=f"car='{car}': the gate of adapter 'default' depends on the input"):
            merge()
        assert same_state(model.state_dict(), before)
    assert not any(layer.merged for layer in lander_layers(model).values())
    assert logits(model, ids()).equal(expected)


@one_architecture
def test_one_unmergeable_adapter_among_layers_stops_all(base: PreTrainedModel, neuron_map: NeuronMap) -> None:
    """The refusing adapter is in the last layers only; the first ones must not have been written by then."""
    model = adapt(base, disjoint_pairs(neuron_map), ["en-de"], adapter_name="x")
    model.add_adapter("y", make_config(disjoint_pairs(neuron_map), ["de-en"], car="learned"))
    before = cloned_state(model)
    with pytest.raises(ConfigError, match="adapter 'y' depends on the input"):
        model.merge_adapter(adapter_names=["x", "y"])
    assert same_state(model.state_dict(), before)


@one_architecture
def test_several_pairs_need_a_choice_before_merging(base: PreTrainedModel, neuron_map: NeuronMap) -> None:
    model = adapt(base, neuron_map)
    before = cloned_state(model)
    with pytest.raises(LanguagePairError, match=r"call model\.set_language_pair"):
        model.merge_adapter()
    assert same_state(model.state_dict(), before)
    model.set_language_pair("en-de")
    model.merge_adapter()
    with pytest.raises(LanguagePairError, match=r"the model is merged for one pair; call unmerge_adapter\(\)"):
        logits(model, ids(), language_pairs=["en-de"] * 3)
    with pytest.raises(LanguagePairError, match=r"the model is merged; call unmerge_adapter\(\)"):
        model.set_language_pair("de-en")


@one_architecture
def test_merge_a_named_adapter(base: PreTrainedModel, neuron_map: NeuronMap) -> None:
    model = side_by_side(base, neuron_map, "one-pair", ["x", "y"])
    second = logits(model, ids())
    model.set_adapter("x")
    model.merge_adapter(adapter_names=["y"])
    torch.testing.assert_close(logits(model, ids()), second, atol=1e-4, rtol=1e-4)
    with pytest.warns(UserWarning, match="Already following adapters were merged y. You are now additionally merging"):
        model.merge_adapter(adapter_names=["x"])
    model.unmerge_adapter()
    model.base_model.set_adapter(["x", "y"])
    expected = logits(model, ids())
    model.merge_adapter(adapter_names=["x", "y"])
    torch.testing.assert_close(logits(model, ids()), expected, atol=1e-4, rtol=1e-4)


# Damaged files


def change(key_end: str, function: Callable[[torch.Tensor], torch.Tensor]) -> Callable[[dict[str, Any]], None]:
    """Damage the first tensor whose key ends like this."""

    def damage(state: dict[str, Any]) -> None:
        key = next(key for key in sorted(state) if key.endswith(key_end))
        state[key] = function(state[key].clone()).contiguous()

    return damage


def filled(value: float, index: int = 0) -> Callable[[torch.Tensor], torch.Tensor]:
    def function(tensor: torch.Tensor) -> torch.Tensor:
        tensor.view(-1)[index] = value
        return tensor

    return function


def remove(state: dict[str, Any]) -> None:
    del state[sorted(state)[3]]


def add(state: dict[str, Any]) -> None:
    key = sorted(state)[0]
    state[f"{key.rpartition('.')[0]}.fr_neurons"] = torch.zeros(2, dtype=torch.int32)


def two_blocks(state: dict[str, Any]) -> None:
    """The first German neuron of an FFN becomes its first English one too."""
    german = next(key for key in sorted(state) if key.endswith("de_neurons"))
    neurons = state[german.replace("de_neurons", "en_neurons")].clone()
    general = state[german.replace("de_neurons", "general_neurons")]
    neurons[0] = general[general < neurons[1]][0]
    state[german.replace("de_neurons", "en_neurons")] = neurons


DAMAGE: dict[str, tuple[Callable[[dict[str, Any]], None], str]] = {
    "missing tensor": (remove, "adapter_model.safetensors=.*lacks"),
    "superfluous tensor": (add, "adapter_model.safetensors=.*has .*fr_neurons"),
    "too few rows": (change("de_neurons", lambda t: t[:-1]), "expected shape"),
    "too narrow": (change("de_DOWN", lambda t: t[:, :-1]), "expected shape"),
    "another rank": (change("_A", lambda t: t[:-1]), "expected shape"),
    "NaN": (change("de_DOWN", filled(float("nan"), 5)), "NaN or infinity.*broken"),
    "infinity": (change("awareness_sums", filled(float("inf"))), "NaN or infinity.*broken"),
    "too large index": (change("general_neurons", filled(10**6, -1)), "neuron indices must ascend within 0 to"),
    "negative index": (change("general_neurons", filled(-1)), "neuron indices must ascend within 0 to"),
    "unsorted": (change("general_neurons", lambda t: t.flip(0)), "neuron indices must ascend"),
    "duplicate": (change("general_neurons", lambda t: torch.cat([t[:1], t[:1], t[2:]])), "neuron indices must ascend"),
    "two blocks": (two_blocks, "a neuron in two blocks"),
    "fractional indices": (change("de_neurons", lambda t: t.float()), "expected torch.int32"),
}


@pytest.fixture
def damaged(base: PreTrainedModel, neuron_map: NeuronMap, tmp_path: Path) -> Callable[[str], Path]:
    model = adapt(base, neuron_map, ["en-de"])
    output = next(iter(lander_layers(model).values())).output_name
    model.save_pretrained(tmp_path)

    def make(kind: str) -> Path:
        function = DAMAGE[kind][0]
        state = load_file(tmp_path / WEIGHTS)
        renamed = {key.replace(output, "DOWN"): value for key, value in state.items()}
        before = {key: value.clone() for key, value in renamed.items()}
        function(renamed)
        assert not same_state(renamed, before)
        save_file({key.replace("DOWN", output): value for key, value in renamed.items()}, tmp_path / WEIGHTS)
        return tmp_path

    return make


@pytest.mark.parametrize("architecture", ["llama", "bloom"], indirect=True)
@pytest.mark.parametrize("kind", DAMAGE)
def test_damaged_file(damaged: Callable[[str], Path], fresh: Any, kind: str) -> None:
    folder = damaged(kind)
    with pytest.raises(AdapterError, match=DAMAGE[kind][1]):
        PeftModel.from_pretrained(fresh(), folder)
    with pytest.raises(AdapterError, match=DAMAGE[kind][1]):
        PeftModel.from_pretrained(fresh(), folder, low_cpu_mem_usage=True)


@one_architecture
def test_truncated_or_empty_file(base: PreTrainedModel, neuron_map: NeuronMap, fresh: Any, tmp_path: Path) -> None:
    adapt(base, neuron_map).save_pretrained(tmp_path)
    whole = (tmp_path / WEIGHTS).read_bytes()
    for size in (len(whole) - 1, 100, 4, 0):
        (tmp_path / WEIGHTS).write_bytes(whole[:size])
        untouched = fresh()
        with pytest.raises(AdapterError, match=r"adapter_model.safetensors': is truncated or damaged"):
            PeftModel.from_pretrained(untouched, tmp_path)
        assert not lander_layers(untouched)


@one_architecture
@pytest.mark.parametrize("kind", ["missing tensor", "NaN", "unsorted"])
def test_a_damaged_second_adapter_leaves_the_first_as_it_is(
    damaged: Callable[[str], Path], neuron_map: NeuronMap, fresh: Any, kind: str
) -> None:
    model = adapt(fresh(), neuron_map, ["en-de"], adapter_name="good", seed=4)
    expected = logits(model, ids())
    with pytest.raises(AdapterError):
        model.load_adapter(damaged(kind), "bad")
    assert model.active_adapter == "good" and logits(model, ids()).equal(expected)


# Neuron maps of another base


OTHER_BASES: dict[str, tuple[dict[str, Any], str]] = {
    "p": ({"intermediate_size": 96}, r"p=64.*the model has p=96"),
    "d": ({"hidden_size": 64}, r"d=32.*the model has d=64"),
    "layers": ({"num_hidden_layers": 6}, r"4 FFN layers.*the model has 6"),
    "fewer layers": ({"num_hidden_layers": 2}, r"4 FFN layers.*the model has 2"),
    "weights": ({"seed": 7}, r"base_fingerprint=.*the adapter was made for other weights"),
}


@pytest.mark.parametrize("architecture", ["llama", "gemma3"], indirect=True)
@pytest.mark.parametrize("what", OTHER_BASES)
def test_neuron_map_of_another_base(neuron_map: NeuronMap, fresh: Any, what: str) -> None:
    options, message = OTHER_BASES[what]
    other = fresh(**options)
    kinds, state = [type(module) for module in other.modules()], cloned_state(other)
    trainable = [parameter.requires_grad for parameter in other.parameters()]
    with pytest.raises(NeuronMapError, match=message):
        get_peft_model(other, make_config(neuron_map))
    assert [type(module) for module in other.modules()] == kinds
    assert same_state(other.state_dict(), state)
    assert [parameter.requires_grad for parameter in other.parameters()] == trainable


def test_neuron_map_of_another_architecture(neuron_map: NeuronMap, architecture: str) -> None:
    other = build_model("bloom" if architecture == "llama" else "llama", seed=7)
    state = cloned_state(other)
    with pytest.raises(NeuronMapError, match=r"the model has no such module|base_fingerprint|p=|d="):
        get_peft_model(other, make_config(neuron_map))
    assert same_state(other.state_dict(), state)


@pytest.mark.parametrize("architecture", ["llama", "gemma3"], indirect=True)
@pytest.mark.parametrize("what", ["p", "d", "fewer layers", "weights"])
def test_saved_adapter_of_another_base(
    base: PreTrainedModel, neuron_map: NeuronMap, fresh: Any, tmp_path: Path, what: str
) -> None:
    adapt(base, neuron_map).save_pretrained(tmp_path)
    other = fresh(**OTHER_BASES[what][0])
    kinds, state = [type(module) for module in other.modules()], cloned_state(other)
    with pytest.raises(NeuronMapError, match=f"{OTHER_BASES[what][1]}|no such module|base_fingerprint"):
        PeftModel.from_pretrained(other, tmp_path)
    assert [type(module) for module in other.modules()] == kinds and same_state(other.state_dict(), state)


def test_verify_base_false_takes_other_weights(
    base: PreTrainedModel, neuron_map: NeuronMap, fresh: Any, tmp_path: Path
) -> None:
    other = fresh(seed=7)
    plain = logits(other, ids())
    model = adapt(other, neuron_map, verify_base=False)
    assert not logits(model, ids(), language_pairs=PAIRS).equal(plain)
    saved = adapt(base, neuron_map)
    saved.save_pretrained(tmp_path)
    config = LanderConfig.from_pretrained(tmp_path)
    config.verify_base = False
    loaded = PeftModel.from_pretrained(fresh(seed=7), tmp_path, config=config)
    assert same_state(get_peft_model_state_dict(loaded), get_peft_model_state_dict(saved))


@one_architecture
@pytest.mark.parametrize(
    ("first", "then"),
    [
        (torch.float32, torch.bfloat16),
        (torch.bfloat16, torch.float32),
        (torch.bfloat16, torch.float16),
    ],
)
def test_map_fits_the_base_in_another_type(
    base: PreTrainedModel, tokenizer: Any, first: torch.dtype, then: torch.dtype
) -> None:
    """The usual case: detected in one type, trained or served in another."""
    base = base.to(first)
    found = detect_neurons(base, tokenizer, SENTENCES, PAIRS, num_layers=2, general_ratio=0.7, progress=False)
    assert lander_layers(adapt(base.to(then), found))


def test_fingerprint_is_the_same_in_bfloat16_and_next_to_other_adapters(
    base: PreTrainedModel, neuron_map: NeuronMap
) -> None:
    model = adapt(base.to(torch.bfloat16), neuron_map, adapter_name="x")
    model.add_adapter("y", make_config(neuron_map, ["en-de"]))
    choose(model, "several-pairs")
    model.merge_adapter()
    state = cloned_state(model)
    with pytest.raises(ConfigError, match=r"the base weights hold a merged adapter; call unmerge_adapter\(\) first"):
        model.add_adapter("c", make_config(neuron_map, ["en-de"]))
    assert same_state(model.state_dict(), state) and list(model.peft_config) == ["x", "y"]
    model.unmerge_adapter()
    model.add_adapter("c", make_config(neuron_map, ["en-de"]))


# What cannot be adapted


second_tuner = pytest.mark.filterwarnings("ignore:You are trying to modify", "ignore:Already found a `peft_config`")
INSIDE = {"llama": ("gate_proj", "self_attn"), "gemma3": ("down_proj", "self_attn")}
INSIDE["bloom"] = ("dense_4h_to_h", "self_attention")


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


@pytest.mark.slow
@one_architecture
@pytest.mark.parametrize("options", [{}, {"general_rank": None}, {"car": "token"}, {"car": "learned"}], ids=str)
def test_compiled_model_gives_the_same_numbers(
    base: PreTrainedModel, neuron_map: NeuronMap, options: dict[str, Any]
) -> None:
    """The default backend, forward and backward."""
    model = adapt(base, neuron_map, ["en-de"], **options)
    expected = model(input_ids=ids(), labels=ids())
    expected.loss.backward()
    gradients = {name: weight.grad.clone() for name, weight in model.named_parameters() if weight.grad is not None}
    model.zero_grad()
    compiled = torch.compile(model)(input_ids=ids(), labels=ids())
    compiled.loss.backward()
    torch.testing.assert_close(compiled.logits, expected.logits, rtol=1e-4, atol=1e-4)
    for name, weight in model.named_parameters():
        if name in gradients:
            torch.testing.assert_close(weight.grad, gradients[name], rtol=1e-3, atol=1e-4, msg=name)


@one_architecture
def test_key_mapping(base: PreTrainedModel, fresh: Any, tmp_path: Path) -> None:
    """Weights saved under names that an older version of the base model had."""
    model = adapt(base)
    model.save_pretrained(tmp_path)
    state = load_file(tmp_path / WEIGHTS)
    save_file({key.replace(".layers.", ".blocks."): value for key, value in state.items()}, tmp_path / WEIGHTS)
    with pytest.raises(AdapterError, match="lacks"):
        PeftModel.from_pretrained(fresh(), str(tmp_path))
    loaded = PeftModel.from_pretrained(fresh(), str(tmp_path), key_mapping={r"\.blocks\.": ".layers."})
    assert logits(loaded, ids()).equal(logits(model, ids()))


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


# Around the adapter


@one_architecture
@every_kind
def test_modules_to_save(base: PreTrainedModel, neuron_map: NeuronMap, fresh: Any, tmp_path: Path, kind: str) -> None:
    model = adapt_kind(base, neuron_map, kind, modules_to_save=["lm_head"])
    head = [name for name, parameter in model.named_parameters() if parameter.requires_grad and "lm_head" in name]
    assert head == ["base_model.model.lm_head.modules_to_save.default.weight"]
    expected = logits(model, ids(), **route(kind))
    model.save_pretrained(tmp_path)
    assert "base_model.model.lm_head.weight" in load_file(tmp_path / WEIGHTS)
    loaded = PeftModel.from_pretrained(fresh(), tmp_path)
    assert logits(loaded, ids(), **route(kind)).equal(expected)
    with loaded.disable_adapter():
        assert logits(loaded, ids()).equal(logits(fresh(), ids()))
    choose(model, kind)
    merged = logits(model, ids())
    torch.testing.assert_close(logits(model.merge_and_unload(), ids()), merged, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("general_rank", [None, 4])
def test_print_trainable_parameters(
    base: PreTrainedModel, neuron_map: NeuronMap, general_rank: int | None, capsys: pytest.CaptureFixture[str]
) -> None:
    total = sum(parameter.numel() for parameter in base.parameters())
    model = adapt(base, neuron_map, ["en-de"], general_rank=general_rank)
    rows = 0
    for layer in neuron_map.layers("en-de"):
        owner = neuron_map.neurons[layer].owner.tolist()
        general, specific = owner.count(-1), owner.count(0) + owner.count(1)  # en and de are languages 0 and 1
        rows += specific * 32 + (general * 32 if general_rank is None else general_rank * (general + 32))
    trainable = rows * (2 if type(base).__name__ == "BloomForCausalLM" else 3)
    assert model.get_nb_trainable_parameters() == (trainable, total + trainable)
    model.print_trainable_parameters()
    assert f"trainable params: {trainable:,d} || all params: {total + trainable:,d}" in capsys.readouterr().out


@pytest.mark.parametrize("architecture", ["llama", "bloom"], indirect=True)
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"general_rank": None},
        {"car": "learned", "inactive_neurons": "drop"},
        {"car": "paper"},
    ],
    ids=str,
)
def test_one_ffn_compiles_as_one_graph(base: PreTrainedModel, neuron_map: NeuronMap, options: dict[str, Any]) -> None:
    model = adapt(base, neuron_map, ["en-de"], **options)
    layer = next(iter(lander_layers(model).values()))
    inputs = [torch.randn(2, 5, 32) for _ in range(2 if type(base).__name__ == "BloomForCausalLM" else 1)]
    torch._dynamo.reset()
    compiled = torch.compile(layer, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(*inputs), layer(*inputs), atol=1e-6, rtol=1e-6)


def test_attributes_of_the_base_ffn_can_be_read(base: PreTrainedModel, neuron_map: NeuronMap) -> None:
    """Some models read a projection's weight from outside."""
    model = adapt(base, neuron_map)
    for layer in lander_layers(model).values():
        assert isinstance(layer, LanderFFN)
        for projection in layer.projection_names:
            assert getattr(layer, projection) is layer.base_layer.get_submodule(projection)
        with pytest.raises(AttributeError):
            layer.no_such_attribute  # noqa: B018


def test_training_mode_follows_the_model(base: PreTrainedModel, neuron_map: NeuronMap) -> None:
    model = get_peft_model(base.eval(), make_config(neuron_map))
    assert not any(layer.training for layer in lander_layers(model).values())
    model.train()
    assert all(layer.training and layer.base_layer.training for layer in lander_layers(model).values())


def test_no_warnings_in_a_usual_life(base: PreTrainedModel, neuron_map: NeuronMap, fresh: Any, tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", category=FutureWarning)
        model = adapt(base, neuron_map)
        logits(model, ids(), language_pairs=PAIRS)
        model.save_pretrained(tmp_path)
        loaded = PeftModel.from_pretrained(fresh(), tmp_path)
        loaded.load_adapter(tmp_path, "second")
        loaded.set_language_pair("en-de")
        loaded.merge_adapter()
        loaded.unmerge_adapter()
        loaded.merge_and_unload()
