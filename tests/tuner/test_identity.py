"""A fresh adapter and a disabled one leave the model as it was, bit for bit; options that do not say so, once."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel, get_peft_model
from transformers import PreTrainedModel

from peft_landermt import LanderConfig, NeuronMap

from ..conftest import PAIRS
from .helpers import KINDS, adapt, ids, logits, make_config, route

MESSAGE = "changes the model's output before any training"
TYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def notices(caught: list[warnings.WarningMessage]) -> list[str]:
    return [str(warning.message) for warning in caught if MESSAGE in str(warning.message)]


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("general_rank", [None, 4])
@pytest.mark.parametrize("car", ["off", "token", "learned"])
def test_fresh_adapter_changes_nothing(
    base: PreTrainedModel,
    neuron_map: NeuronMap,
    car: str,
    general_rank: int | None,
    dtype: str,
) -> None:
    base = base.to(TYPES[dtype])
    plain = logits(base, ids())
    model = adapt(base, neuron_map, seed=None, car=car, general_rank=general_rank)
    assert logits(model, ids(), language_pairs=PAIRS).equal(plain)
    assert logits(model, ids(), language_pairs=["de-en"] * 3).equal(plain)
    model.set_language_pair("en-fr")
    assert logits(model, ids()).equal(plain)


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("kind", KINDS)
def test_fresh_adapter_of_default_options_changes_nothing(
    base: PreTrainedModel, neuron_map: NeuronMap, kind: str, dtype: str
) -> None:
    base = base.to(TYPES[dtype])
    plain = logits(base, ids())
    model = get_peft_model(base, make_config(None if kind == "no-map" else neuron_map, KINDS[kind])).eval()
    assert logits(model, ids(), **route(kind)).equal(plain)


@pytest.mark.parametrize("options", [{"tune": "general"}, {"tune": "specific"}, {"tune": "layers"}], ids=str)
def test_fresh_adapter_of_any_tune_changes_nothing(
    base: PreTrainedModel, neuron_map: NeuronMap, options: dict[str, Any]
) -> None:
    plain = logits(base, ids())
    model = adapt(base, neuron_map, seed=None, **options)
    assert logits(model, ids(), language_pairs=PAIRS).equal(plain)


def test_init_weights_false_is_not_the_identity(base: PreTrainedModel, neuron_map: NeuronMap) -> None:
    plain = logits(base, ids())
    model = adapt(base, neuron_map, seed=None, init_weights=False)
    assert not torch.allclose(logits(model, ids(), language_pairs=PAIRS), plain, atol=1e-3)


@pytest.mark.parametrize(
    "options",
    [{}, {"general_rank": None}, {"car": "paper", "inactive_neurons": "drop"}, {"car": "proportional"}],
    ids=str,
)
def test_disabled_merged_adapter_gives_the_base(
    base: PreTrainedModel, neuron_map: NeuronMap, options: dict[str, Any]
) -> None:
    plain = logits(base, ids())
    model = adapt(base, neuron_map, **options)
    model.set_language_pair("en-fr")
    model.merge_adapter()
    merged = logits(model, ids())
    assert not torch.allclose(merged, plain, atol=1e-2)
    with model.disable_adapter():
        assert logits(model, ids()).equal(plain)
    torch.testing.assert_close(logits(model, ids()), merged, atol=1e-4, rtol=1e-4)
    with model.disable_adapter():
        assert logits(model, ids()).equal(plain)


def test_disabled_adapter_without_a_task_type_takes_language_pairs(
    base: PreTrainedModel, neuron_map: NeuronMap
) -> None:
    plain = logits(base, ids())
    model = get_peft_model(base, LanderConfig(neuron_map=neuron_map)).eval()
    assert type(model) is PeftModel
    with model.disable_adapter():
        assert logits(model, ids(), language_pairs=PAIRS).equal(plain)


CHANGING: list[dict[str, Any]] = [
    {"car": "paper"},
    {"car": "proportional"},
    {"inactive_neurons": "drop"},
    {"car": "token", "inactive_neurons": "drop"},
    {"car": "paper", "inactive_neurons": "drop", "tune": "specific"},
]


@pytest.mark.parametrize("architecture", ["llama", "bloom"], indirect=True)
@pytest.mark.parametrize("options", CHANGING, ids=str)
def test_options_that_change_a_fresh_model_say_so_once(
    base: PreTrainedModel, neuron_map: NeuronMap, tmp_path: Path, options: dict[str, Any]
) -> None:
    plain = logits(base, ids())
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        config = make_config(neuron_map, **options)
        model = get_peft_model(base, config).eval()
        first, _ = (logits(model, ids(), language_pairs=PAIRS) for _ in range(2))
    car, inactive = options.get("car", "off"), options.get("inactive_neurons", "keep")
    assert notices(caught) == [f"car={car!r} with inactive_neurons={inactive!r} {MESSAGE}."]
    assert not torch.allclose(first, plain, atol=1e-3)
    model.save_pretrained(tmp_path)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        loaded = PeftModel.from_pretrained(model.unload(), tmp_path)
        loaded.load_adapter(tmp_path, "second")
    assert notices(caught) == []
    assert logits(loaded, ids(), language_pairs=PAIRS).equal(first)


@pytest.mark.parametrize("architecture", ["llama"], indirect=True)
@pytest.mark.parametrize("options", [{}, {"car": "token"}, {"car": "learned"}, {"tune": "layers"}], ids=str)
def test_options_that_change_nothing_are_silent(
    base: PreTrainedModel, neuron_map: NeuronMap, options: dict[str, Any]
) -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        get_peft_model(base, make_config(neuron_map, **options))
    assert notices(caught) == []
