"""LanderConfig: what it refuses, what it reads from a neuron map, and what it saves."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
from peft import PeftConfig, PeftModel, get_peft_model

from peft_landermt import LanderConfig, NeuronMap
from peft_landermt.errors import ConfigError, LanguagePairError, NeuronMapError
from peft_landermt.lander.config import FORMAT_VERSION

from ..conftest import ARCHITECTURES, PAIRS, build_model
from .helpers import make_config

MAPPED = "with map"
"""Marks options that a neuron map is added to."""

REFUSED: list[tuple[dict[str, Any], str, Any, str]] = [
    ({"car": "sometimes"}, "car", "sometimes", "must be one of off, paper, proportional, token, learned."),
    ({"inactive_neurons": "freeze"}, "inactive_neurons", "freeze", "must be one of keep, drop."),
    ({"tune": "all"}, "tune", "all", "must be one of pair, general, specific, layers."),
    ({"general_rank": 0}, "general_rank", 0, "must be a positive integer, or None for whole rows."),
    ({"general_rank": -1}, "general_rank", -1, "must be a positive integer, or None for whole rows."),
    ({"general_rank": 2.0}, "general_rank", 2.0, "must be a positive integer, or None for whole rows."),
    ({"general_rank": True}, "general_rank", True, "must be a positive integer, or None for whole rows."),
    (
        {"format_version": FORMAT_VERSION + 1},
        "format_version",
        FORMAT_VERSION + 1,
        f"this version reads up to {FORMAT_VERSION}; update peft_landermt.",
    ),
    (
        {"target_modules": "all-linear"},
        "target_modules",
        "all-linear",
        "LANDER adapts whole FFN modules; name them, or leave this out.",
    ),
    ({"layers_pattern": "layers"}, "layers_pattern", "layers", "give layers_to_transform too."),
    (
        {"target_modules": r".*\.mlp", "layers_to_transform": [0]},
        "layers_to_transform",
        [0],
        "cannot be combined with a regular expression.",
    ),
    (
        {MAPPED: True, "layers_to_transform": [0]},
        "layers_to_transform",
        [0],
        "the neuron map chooses the layers.",
    ),
    *(
        ({"car": car}, "car", car, "needs a neuron_map, which holds the awareness that it is made of.")
        for car in ("paper", "proportional", "token")
    ),
    ({"tune": "specific"}, "tune", "specific", "needs a neuron_map, which tells the specific neurons."),
    *(
        (
            {MAPPED: True, "tune": "layers", **routed},
            "tune",
            "layers",
            "knows no groups of neurons; use car='off' or 'learned' and inactive_neurons='keep'.",
        )
        for routed in ({"car": "paper"}, {"car": "proportional"}, {"car": "token"}, {"inactive_neurons": "drop"})
    ),
]


@pytest.fixture
def llama_map(_bases: Any) -> NeuronMap:
    return _bases("llama")[1]


@pytest.mark.parametrize(("options", "field", "value", "remedy"), REFUSED)
def test_refused_options(llama_map: NeuronMap, options: dict[str, Any], field: str, value: Any, remedy: str) -> None:
    given = {key: option for key, option in options.items() if key != MAPPED}
    with pytest.raises(ConfigError) as caught:
        LanderConfig(neuron_map=llama_map if MAPPED in options else None, **given)
    assert (caught.value.field, caught.value.value) == (field, value)
    assert str(caught.value) == f"{field}={value!r}: {remedy}"


@pytest.mark.parametrize("with_map", [False, True])
@pytest.mark.parametrize(
    ("pairs", "remedy"),
    [
        ("en-de", r"expected a list of pairs: \['en-de'\]"),
        ([], "name at least one pair"),
        (["en"], "joined by a hyphen"),
        (["en-de-fr"], "joined by a hyphen"),
        (["EN-de"], "joined by a hyphen"),
        (["en_de"], "joined by a hyphen"),
        ([("en", "de")], "joined by a hyphen"),
        (["de-de"], "must differ"),
        (["en-de", "de-en", "en-de"], "may be named once"),
    ],
)
def test_malformed_pairs(llama_map: NeuronMap, with_map: bool, pairs: Any, remedy: str) -> None:
    with pytest.raises(LanguagePairError, match=f"language_pairs=.*{remedy}"):
        LanderConfig(neuron_map=llama_map if with_map else None, language_pairs=pairs)


@pytest.mark.parametrize("pair", ["fr-en", "en-it"])
def test_pair_that_the_map_does_not_hold(llama_map: NeuronMap, pair: str) -> None:
    with pytest.raises(LanguagePairError, match=f"'{pair}': the neuron map holds en-de, de-en, en-fr"):
        LanderConfig(neuron_map=llama_map, language_pairs=["en-de", pair])


@pytest.mark.parametrize("pairs", [None, ["en-fr"], ["de-en", "en-de"], PAIRS])
@pytest.mark.parametrize("tune", ["pair", "layers"])
def test_what_is_read_from_the_map(llama_map: NeuronMap, pairs: list[str] | None, tune: Any) -> None:
    config = LanderConfig(neuron_map=llama_map, language_pairs=pairs, tune=tune)
    chosen = PAIRS if pairs is None else pairs
    assert config.language_pairs == chosen
    assert config.neuron_map_signature == llama_map.signature
    assert config.base_fingerprint == llama_map.fingerprint
    expected = {}
    for layer, entry in enumerate(llama_map.neurons):
        here = [pair for pair in chosen if layer in llama_map.pair_layers[pair]]
        owners = [None if owner == -1 else llama_map.languages[owner] for owner in entry.owner.tolist()]
        languages = sorted({language for pair in here for language in pair.split("-")}) if tune == "pair" else []
        specific = {code: owners.count(code) for code in languages}
        if here:
            expected[entry.name] = {
                "layer": layer,
                "neurons": 64,
                "width": 32,
                "general": owners.count(None) if tune == "pair" else 64,
                "specific": {code: count for code, count in specific.items() if count},
                "language_pairs": here,
            }
    assert config.neuron_counts == expected and expected
    assert config.has_neuron_map


def test_map_given_as_path(llama_map: NeuronMap, tmp_path: Path) -> None:
    llama_map.save(tmp_path / "map.safetensors")
    for path in (tmp_path / "map.safetensors", str(tmp_path / "map.safetensors")):
        config = LanderConfig(neuron_map=path, language_pairs=["en-de"])
        assert isinstance(config.neuron_map, NeuronMap)
        assert config == LanderConfig(neuron_map=llama_map, language_pairs=["en-de"])


def test_map_file_missing_or_damaged(llama_map: NeuronMap, tmp_path: Path) -> None:
    with pytest.raises(NeuronMapError, match="there is no such file"):
        LanderConfig(neuron_map=tmp_path / "none.safetensors")
    llama_map.save(tmp_path / "map.safetensors")
    whole = (tmp_path / "map.safetensors").read_bytes()
    (tmp_path / "map.safetensors").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(NeuronMapError, match="the file is damaged"):
        LanderConfig(neuron_map=tmp_path / "map.safetensors")


@pytest.mark.parametrize("name", ["target_modules", "exclude_modules"])
@pytest.mark.parametrize("kind", [list, tuple, set])
def test_names_become_sets(name: str, kind: Any) -> None:
    assert getattr(LanderConfig(**{name: kind(["b.mlp", "a.mlp"])}), name) == {"a.mlp", "b.mlp"}
    assert LanderConfig(**{name: kind(["b.mlp", "a.mlp"])}).to_dict()[name] == ["a.mlp", "b.mlp"]
    assert getattr(LanderConfig(**{name: r".*\.mlp"}), name) == r".*\.mlp"


def test_paper(llama_map: NeuronMap) -> None:
    config = LanderConfig.paper(neuron_map=llama_map, task_type="CAUSAL_LM")
    values = (config.car, config.inactive_neurons, config.tune, config.general_rank)
    assert values == ("paper", "drop", "pair", None)
    assert config.changes_fresh_output and config.task_type == "CAUSAL_LM"
    assert LanderConfig.paper(neuron_map=llama_map, car="token").car == "token"


def test_defaults() -> None:
    config = LanderConfig()
    assert (config.car, config.inactive_neurons, config.tune, config.general_rank) == ("off", "keep", "pair", 6)
    assert config.init_weights is True and config.verify_base is True
    assert config.neuron_counts is None and config.language_pairs is None
    assert not config.has_neuron_map and not config.changes_fresh_output


@pytest.mark.parametrize(
    ("options", "changes"),
    [
        ({}, False),
        ({"car": "token"}, False),
        ({"car": "learned"}, False),
        ({"car": "paper"}, True),
        ({"car": "proportional"}, True),
        ({"inactive_neurons": "drop"}, True),
        ({"car": "learned", "inactive_neurons": "drop"}, True),
    ],
)
def test_changes_fresh_output(llama_map: NeuronMap, options: dict[str, Any], changes: bool) -> None:
    assert LanderConfig(neuron_map=llama_map, **options).changes_fresh_output is changes


ROUND_TRIPS: list[dict[str, Any]] = [
    {},
    {"target_modules": ["mlp"], "exclude_modules": ["layers.0.mlp"], "layers_to_transform": [1, 2]},
    {"target_modules": r".*\.mlp", "init_weights": False, "modules_to_save": ["lm_head"]},
    {"layers_to_transform": 1, "layers_pattern": "layers", "general_rank": 3, "car": "learned"},
    {"language_pairs": ["en-de"], "task_type": "CAUSAL_LM", "base_model_name_or_path": "some/base"},
    {MAPPED: True},
    {MAPPED: True, "language_pairs": ["de-en", "en-de"], "general_rank": 4, "car": "token", "verify_base": False},
    {MAPPED: True, "language_pairs": ["en-fr"], "tune": "layers", "target_modules": ["mlp"]},
    {MAPPED: True, "car": "paper", "inactive_neurons": "drop", "tune": "specific", "general_rank": None},
]


@pytest.mark.parametrize("options", ROUND_TRIPS)
def test_save_and_load(llama_map: NeuronMap, tmp_path: Path, options: dict[str, Any]) -> None:
    given = {key: option for key, option in options.items() if key != MAPPED}
    config = LanderConfig(neuron_map=llama_map if MAPPED in options else None, **given)
    config.save_pretrained(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["adapter_config.json"]
    saved = json.loads((tmp_path / "adapter_config.json").read_text())
    assert "neuron_map" not in saved and saved["peft_type"] == "LANDER"
    for loaded in (PeftConfig.from_pretrained(tmp_path), LanderConfig.from_pretrained(tmp_path)):
        assert type(loaded) is LanderConfig and loaded == config
        assert loaded.neuron_map is None
        assert loaded.has_neuron_map == (MAPPED in options)
        assert loaded.to_dict() == config.to_dict()


def test_saved_config_of_a_newer_format_is_refused(tmp_path: Path) -> None:
    LanderConfig().save_pretrained(tmp_path)
    path = tmp_path / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "format_version": FORMAT_VERSION + 1}))
    with pytest.raises(ConfigError, match="update peft_landermt"):
        PeftConfig.from_pretrained(tmp_path)


@pytest.mark.parametrize("architecture", ARCHITECTURES[:1], indirect=True)
def test_the_callers_config_stays_the_callers(base: Any, neuron_map: NeuronMap, tmp_path: Path) -> None:
    config = make_config(neuron_map, ["en-de"], general_rank=4)
    before = copy.deepcopy(neuron_map)
    model = get_peft_model(base, config)
    model.save_pretrained(tmp_path)
    assert model.peft_config["default"] is config
    assert config.neuron_map is neuron_map
    assert (before.pair_layers, before.layer_changes) == (neuron_map.pair_layers, neuron_map.layer_changes)
    for old, new in zip(before.neurons, neuron_map.neurons, strict=True):
        for tensor in ("owner", "awareness", "mean_gradient", "mean_abs_activation"):
            assert getattr(old, tensor).equal(getattr(new, tensor))
    assert (config.inference_mode, config.language_pairs) == (False, ["en-de"])
    # the same object serves a second base
    assert get_peft_model(build_model("llama"), config).peft_config["default"] is config
    # and a loaded one is complete without a map
    loaded = PeftModel.from_pretrained(build_model("llama"), tmp_path).peft_config["default"]
    assert loaded.neuron_map is None and loaded.neuron_counts == config.neuron_counts
