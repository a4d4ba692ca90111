"""Merging: what it writes, and what it refuses before anything is written."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel

from peft_landermt import NeuronMap
from peft_landermt.errors import ConfigError, LanguagePairError

from ..conftest import PAIRS
from .helpers import (
    adapt,
    adapt_kind,
    cloned_state,
    dense_sum,
    ids,
    logits,
    make_config,
    same_state,
    side_by_side,
    unmerged_weights,
)


@pytest.fixture
def architecture() -> str:
    return "llama"


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("no-map", {"general_rank": None}),
        ("one-pair", {"tune": "layers"}),
        ("several-pairs", {"tune": "layers"}),
        ("several-pairs", {"tune": "general"}),
        ("several-pairs", {"tune": "specific"}),
        ("one-pair", {"car": "proportional", "tune": "specific"}),
        ("several-pairs", {"car": "proportional", "tune": "specific"}),
    ],
    ids=str,
)
def test_whatever_is_tuned_is_merged(
    base: PreTrainedModel, neuron_map: NeuronMap, kind: str, options: dict[str, Any]
) -> None:
    model = adapt_kind(base, neuron_map, kind, **options)
    state = cloned_state(model)
    for pair in PAIRS if kind == "several-pairs" else [None]:
        if pair is not None:
            model.set_language_pair(pair)
        expected = logits(model, ids())
        model.merge_adapter()
        torch.testing.assert_close(logits(model, ids()), expected, atol=1e-4, rtol=1e-4)
        assert not same_state(model.state_dict(), state)
        model.unmerge_adapter()
        assert same_state(model.state_dict(), state) and logits(model, ids()).equal(expected)


def test_merging_rounds_once_in_bfloat16(base: PreTrainedModel, neuron_map: NeuronMap) -> None:
    model = adapt(base.to(torch.bfloat16), neuron_map, ["en-de"])
    expected = dense_sum(model, neuron_map, {"default": "en-de"})
    model.merge_adapter()
    found = unmerged_weights(model)
    for key, value in expected.items():
        assert found[key].dtype == torch.bfloat16 and found[key].equal(value.to(torch.bfloat16)), key


def test_one_unmergeable_adapter_among_layers_stops_all(base: PreTrainedModel, neuron_map: NeuronMap) -> None:
    """The refusing adapter is in the last layers only; the first ones must not have been written by then."""
    apart = dataclasses.replace(neuron_map, pair_layers={"en-de": (0, 1), "de-en": (2, 3)})
    model = adapt(base, apart, ["en-de"], adapter_name="x")
    model.add_adapter("y", make_config(apart, ["de-en"], car="learned"))
    before = cloned_state(model)
    with pytest.raises(ConfigError, match="adapter 'y' depends on the input"):
        model.merge_adapter(adapter_names=["x", "y"])
    assert same_state(model.state_dict(), before)


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
