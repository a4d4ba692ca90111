"""Several adapters on one base: their names, which is active, and what they add up to."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel, get_peft_model_state_dict
from safetensors.torch import load_file
from transformers import PreTrainedModel

from peft_landermt import NeuronMap
from peft_landermt.errors import ConfigError

from ..conftest import build_model, randomize_adapter
from .helpers import (
    KINDS,
    adapt,
    adapt_kind,
    cloned_state,
    dense_sum,
    ids,
    logits,
    make_config,
    route,
    same_state,
    side_by_side,
    unmerged_weights,
)

WEIGHTS = "adapter_model.safetensors"
NAMES = ["default", "de", "en-de", "1", "er"]
one_architecture = pytest.mark.parametrize("architecture", ["llama"], indirect=True)
every_kind = pytest.mark.parametrize("kind", KINDS)
loud = pytest.mark.filterwarnings("error:.*missing adapter keys")


@pytest.fixture
def fresh(architecture: str) -> Callable[..., PreTrainedModel]:
    """Makes a base as `base` is."""
    return lambda seed=0, **options: build_model(architecture, seed, **options)


@loud
@one_architecture
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


@one_architecture
@pytest.mark.filterwarnings("ignore:Adapter .* was active which is now deleted")
@pytest.mark.parametrize(
    ("deleted", "kept"),
    [("x", "y"), ("y", "x")],
)
def test_delete_the_active_adapter_of_other_layers(
    base: PreTrainedModel, neuron_map: NeuronMap, deleted: str, kept: str
) -> None:
    """Adapters of two pairs share no layer: all layers must agree on which adapter is active afterwards."""
    apart = dataclasses.replace(neuron_map, pair_layers={"en-de": (0, 1), "de-en": (2, 3)})
    model = adapt(base, apart, ["en-de"], adapter_name="x")
    model.add_adapter("y", make_config(apart, ["de-en"]))
    model.set_adapter("y")
    randomize_adapter(model, seed=2)
    model.set_adapter(kept)
    expected = logits(model, ids())
    model.set_adapter(deleted)
    model.delete_adapter(deleted)
    assert model.base_model.active_adapters == [kept] and model.active_adapter == kept
    assert logits(model, ids()).equal(expected)


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
