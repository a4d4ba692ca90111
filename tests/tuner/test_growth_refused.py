"""What cannot grow, or not so, is refused by a typed error, and nothing is changed."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model

from peft_landermt import (
    LanderConfig,
    NeuronMap,
    add_language_pairs,
    compose_language_pair,
    detect_neurons,
    join_adapters,
    remove_language_pairs,
    split_adapter,
)
from peft_landermt.errors import AdapterError, ConfigError, LanderError, LanguagePairError, NeuronMapError
from peft_landermt.translation import TEMPLATES
from peft_landermt.translation.models import keep_prompt

from ..conftest import PAIRS, SENTENCES
from .growing import ITALIAN, SPANISH, adapted, base, grow, grown, maps, of_pairs, same, saved, tokenizer
from .helpers import adapt, ids, lander_layers, logits

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")
NAME = "Gemma 3"


def moved(owner: int, to: int) -> NeuronMap:
    """The map with Italian, with one neuron of an owner given to another, in a layer of the adapter."""
    found = maps(NAME)[1]
    layer = maps(NAME)[0].layers("en-de")[0]
    entry = found.neurons[layer]
    changed = entry.owner.clone()
    changed[int(torch.nonzero(changed == owner)[0])] = to
    neurons = [
        dataclasses.replace(entry, owner=changed) if index == layer else other
        for index, other in enumerate(found.neurons)
    ]
    return dataclasses.replace(found, neurons=tuple(neurons))


def from_scratch() -> NeuronMap:
    from .growing import MORE

    texts = {**SENTENCES, "it": MORE["it"]}
    return detect_neurons(base(NAME), tokenizer(), texts, ITALIAN, num_layers=2, general_ratio=0.7, progress=False)


def italian(**options: Any) -> Callable[[PeftModel], None]:
    return lambda model: add_language_pairs(model, maps(NAME)[1], ITALIAN, **options)


REFUSED: dict[str, tuple[Callable[[PeftModel], None], type[LanderError], str]] = {
    "German to Italian": (
        lambda m: add_language_pairs(m, moved(1, 3), ITALIAN),
        NeuronMapError,
        "is of de in the ad.* and of it",
    ),
    "German to general": (
        lambda m: add_language_pairs(m, moved(1, -1), ITALIAN),
        NeuronMapError,
        "is of de .* of general",
    ),
    "German to French": (lambda m: add_language_pairs(m, moved(1, 2), ITALIAN), NeuronMapError, "is of de .* of fr"),
    "general to German": (
        lambda m: add_language_pairs(m, moved(-1, 1), ITALIAN),
        NeuronMapError,
        "is of general .* of de",
    ),
    "detected anew": (lambda m: add_language_pairs(m, from_scratch(), ITALIAN), NeuronMapError, "extends="),
    "another base": (
        lambda m: add_language_pairs(m, dataclasses.replace(maps(NAME)[1], fingerprint="0" * 16), ITALIAN),
        NeuronMapError,
        "is of another base",
    ),
    "another architecture": (
        lambda m: add_language_pairs(m, dataclasses.replace(maps("BLOOM")[1], fingerprint=None), ITALIAN),
        NeuronMapError,
        "no such FFN",
    ),
    "no such map": (lambda m: add_language_pairs(m, "nowhere", ITALIAN), NeuronMapError, "no such file"),
    "a pair that the map lacks": (
        lambda m: add_language_pairs(m, maps(NAME)[0], ITALIAN),
        LanguagePairError,
        "map holds",
    ),
    "a pair that is there": (
        lambda m: add_language_pairs(m, maps(NAME)[1], ["en-de", "en-it"]),
        LanguagePairError,
        "in the adapter already",
    ),
    "the same pair twice": (
        lambda m: add_language_pairs(m, maps(NAME)[1], ["en-it", "en-it"]),
        LanguagePairError,
        "may be named once",
    ),
    "no new language": (
        lambda m: add_language_pairs(m, maps(NAME)[1], ["de-fr"]),
        LanguagePairError,
        "no new language",
    ),
    "not a list": (lambda m: add_language_pairs(m, maps(NAME)[1], "en-it"), LanguagePairError, "expected a list"),
    "rank 0": (italian(specific_rank=0), ConfigError, "rank=0"),
    "rank of attention 0": (italian(attention_rank=0), ConfigError, "attention_rank=0"),
    "rank too large": (italian(specific_rank=99), ConfigError, "specific_rank=99"),
    "rank of attention too large": (italian(attention_rank=99), ConfigError, "attention_rank=99"),
    "roles": (italian(attention_modules=["x"]), ConfigError, "attention_modules"),
    "no roles": (italian(attention_modules=[]), ConfigError, "names nothing"),
    "tune": (italian(tune="general"), ConfigError, "tune='general'"),
    "projections": (italian(projections="down"), ConfigError, "projections='down'"),
    "begins as a language of the first": (italian(init_from="de"), ConfigError, "init_from='de'.*here: general"),
    "begins as no language": (italian(init_from=["de"]), ConfigError, "init_from="),
    "whole rows begin as factors": (
        italian(init_from="general", specific_rank=None),
        ConfigError,
        "specific_rank=None: has no components.*leave out init_from",
    ),
    "begins as general on other neurons": (
        italian(init_from="general", tune="specific"),
        ConfigError,
        "tune='specific'.*leave out init_from",
    ),
    "unknown adapter": (italian(adapter_name="x"), AdapterError, r"loaded: \['default'\]"),
    "composed without a block": (lambda m: compose_language_pair(m, "de-it"), LanguagePairError, "no block of 'it'"),
    "composed twice": (lambda m: compose_language_pair(m, "en-de"), LanguagePairError, "in the adapter already"),
    "composed badly": (lambda m: compose_language_pair(m, "de"), LanguagePairError, "joined by a hyphen"),
    "removed what is not there": (lambda m: remove_language_pairs(m, ["en-it"]), LanguagePairError, "holds en-de"),
    "removed everything": (lambda m: remove_language_pairs(m, PAIRS), LanguagePairError, "are all"),
    "removed nothing": (lambda m: remove_language_pairs(m, []), LanguagePairError, "at least one"),
}


@pytest.fixture(scope="module")
def model() -> PeftModel:
    return adapted(NAME)


@pytest.mark.parametrize("case", REFUSED)
def test_refused_before_anything_changes(case: str, model: PeftModel) -> None:
    action, error, message = REFUSED[case]
    before, expected, names = saved(model), of_pairs(model, PAIRS), [name for name, _ in model.named_modules()]
    config, trained = model.peft_config["default"], [p.requires_grad for p in model.parameters()]
    fields = config.to_dict()
    with pytest.raises(error, match=message):
        action(model)
    assert same(before, saved(model)) and same(expected, of_pairs(model, PAIRS))
    assert [name for name, _ in model.named_modules()] == names
    assert [p.requires_grad for p in model.parameters()] == trained
    assert model.peft_config["default"] is config and config.to_dict() == fields


@pytest.mark.parametrize(
    ("option", "value"),
    [("specific_rank", 3), ("projections", "input"), ("attention_modules", None), ("attention_rank", 3)],
)
def test_a_block_of_another_form_is_no_beginning(option: str, value: Any) -> None:
    model = adapted(NAME)
    grow(model, maps(NAME)[1], ITALIAN)
    before, config = saved(model), model.peft_config["default"].to_dict()
    form = {"specific_rank": 2, "attention_rank": 2, option: value}
    with pytest.raises(ConfigError, match=f"{option}={value!r}.*leave out init_from"):
        add_language_pairs(model, maps(NAME)[2], SPANISH, init_from="it", **form)
    assert same(before, saved(model)) and model.peft_config["default"].to_dict() == config


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"general_rank": None}, "general_rank=None: has no components"),
        ({"tune": "specific"}, "tune='specific': has no general block"),
        ({"tune": "layers"}, "tune='layers': has a general block on all neurons"),
        ({"car": "learned"}, "car='learned': opens general and specific blocks by the input"),
        ({"car": "token"}, "car='token': opens"),
        ({"projections": "input", "attention_modules": ["q"]}, "projections='output': has nothing in common"),
    ],
)
def test_a_general_block_that_is_no_beginning(options: dict[str, Any], message: str) -> None:
    model = adapted(NAME, **options)
    before, config = saved(model), model.peft_config["default"].to_dict()
    form = {"specific_rank": 2, "projections": "output", "attention_modules": ["v"], "attention_rank": 2}
    with pytest.raises(ConfigError, match=f"{message}.*leave out init_from"):
        add_language_pairs(model, maps(NAME)[1], ITALIAN, init_from="general", **form)
    assert same(before, saved(model)) and model.peft_config["default"].to_dict() == config


def no_map() -> PeftModel:
    return adapt(base(NAME), None, PAIRS)


def saved_modules() -> PeftModel:
    return adapted(NAME, modules_to_save=["lm_head"])


def merged() -> PeftModel:
    model = adapted(NAME)
    model.set_language_pair("en-de")
    model.merge_adapter()
    return model


def lora() -> PeftModel:
    return get_peft_model(base(NAME), LoraConfig(target_modules=["q_proj"]))


CANNOT_GROW: dict[str, tuple[Callable[[], Any], type[LanderError], str]] = {
    "without a map": (no_map, AdapterError, "made without a neuron map"),
    "whole modules": (saved_modules, ConfigError, "modules_to_save"),
    "merged": (merged, AdapterError, "unmerge_adapter"),
    "LoRA": (lora, AdapterError, "name a LANDER adapter"),
    "a base": (lambda: base(NAME), AdapterError, "name a LANDER adapter"),
}


@pytest.mark.parametrize("case", CANNOT_GROW)
def test_adapters_that_cannot_grow(case: str) -> None:
    make, error, message = CANNOT_GROW[case]
    with pytest.raises(error, match=message):
        add_language_pairs(make(), maps(NAME)[1], ITALIAN)


@pytest.mark.parametrize("options", [{"car": "paper"}, {"car": "learned"}, {"inactive_neurons": "drop"}], ids=str)
def test_composing_where_gates_need_the_map(options: dict[str, Any]) -> None:
    model = adapted(NAME, **options)
    with pytest.raises(ConfigError, match="neuron_map=None"):
        compose_language_pair(model, "de-fr")
    compose_language_pair(model, "de-fr", neuron_map=maps(NAME)[0])
    assert logits(model, ids(), language_pairs=["de-fr"] * 3).isfinite().all()
    layers = {name for name, layer in lander_layers(model).items() if "de-fr" in layer.blocks("default").pairs}
    found = maps(NAME)[0]
    for layer in (index for index, entry in enumerate(found.neurons) if entry.name in layers):
        blocks = lander_layers(model)[found.neurons[layer].name].blocks("default")
        sums = blocks.get_buffer("awareness_sums")[blocks.pair_index("de-fr")]
        torch.testing.assert_close(sums, torch.tensor(found.awareness_between(layer, "de", "fr")))


def test_the_template_of_earlier_pairs_stays() -> None:
    model = adapted(NAME)
    keep_prompt(model, TEMPLATES[0])
    grow(model, maps(NAME)[1], ITALIAN)
    keep_prompt(model, TEMPLATES[0])
    with pytest.raises(ConfigError, match="trained with another"):
        keep_prompt(model, TEMPLATES[1])


def test_a_neuron_of_two_owners_in_a_file(tmp_path: Path) -> None:
    model = grown(NAME)
    for layer in lander_layers(model).values():
        blocks = layer.blocks("default")
        if "it" in blocks.layout.specific and len(blocks.neurons("de")) and len(blocks.neurons("it")):
            blocks.get_buffer("it_neurons").copy_(blocks.neurons("de")[: len(blocks.neurons("it"))].int())
            break
    model.save_pretrained(tmp_path)
    with pytest.raises(AdapterError, match="of it and of another language"):
        PeftModel.from_pretrained(base(NAME), str(tmp_path))


DAMAGED: dict[str, tuple[dict[str, Any], str]] = {
    "no additions": ({"additions": []}, "additions"),
    "a field too few": ({"additions": [{"languages": ["it"]}]}, "fields of an addition"),
    "a stranger": ({"composed_pairs": ["de-it"]}, "not all among"),
    "malformed": ({"composed_pairs": ["de"]}, "hyphen"),
}


@pytest.mark.parametrize("case", DAMAGED)
def test_damaged_configs(case: str) -> None:
    fields, message = DAMAGED[case]
    values = {
        key: value for key, value in adapted(NAME).peft_config["default"].to_dict().items() if key != "peft_type"
    }
    with pytest.raises(LanderError, match=message):
        LanderConfig(**{**values, **fields})


# Joining


def test_adapters_that_grew_apart_are_joined(tmp_path: Path) -> None:
    first, second = adapted(NAME), adapted(NAME)
    grow(first, maps(NAME)[1], ITALIAN, specific_rank=3)
    grow(second, maps(NAME)[2], SPANISH, seed=7)
    folders = [split_adapter(first, tmp_path / "first"), split_adapter(second, tmp_path / "second")]
    chosen = [folders[0]["en-de"], folders[0]["en-it"], folders[1]["es-de"]]
    joined = join_adapters(base(NAME), chosen).eval()
    for model, pair in ((first, "en-de"), (first, "en-it"), (second, "es-de")):
        assert logits(joined, ids(), language_pairs=[pair] * 3).equal(logits(model, ids(), language_pairs=[pair] * 3))
    joined.save_pretrained(tmp_path / "joined")
    loaded = PeftModel.from_pretrained(base(NAME), str(tmp_path / "joined")).eval()
    assert same(saved(loaded), saved(joined))


def test_joining_what_was_trained_apart_names_the_blocks(tmp_path: Path) -> None:
    folders = [split_adapter(adapted(NAME, seed=seed), tmp_path / str(seed)) for seed in (1, 2)]
    with pytest.raises(
        AdapterError, match=r"block en, general differs.*trained apart.*adapter_names.*add_language_pairs"
    ):
        join_adapters(base(NAME), [folders[0]["en-de"], folders[1]["en-fr"]])
