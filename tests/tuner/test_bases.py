"""Neuron maps and adapters on another base than theirs, and on theirs in another type."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel, get_peft_model, get_peft_model_state_dict
from transformers import PreTrainedModel

from peft_landermt import LanderConfig, NeuronMap, detect_neurons
from peft_landermt.errors import ConfigError, NeuronMapError

from ..conftest import ARCHITECTURES, PAIRS, SENTENCES, build_model
from .helpers import adapt, cloned_state, ids, lander_layers, logits, make_config, same_state

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")


@pytest.fixture
def architecture() -> str:
    return "llama"


@pytest.fixture
def fresh(architecture: str) -> Callable[..., PreTrainedModel]:
    """Makes a base as `base` is."""
    return lambda seed=0, **options: build_model(architecture, seed, **options)


OTHER_BASES: dict[str, tuple[dict[str, Any], str]] = {
    "p": ({"intermediate_size": 96}, r"p=64.*the model has p=96"),
    "d": ({"hidden_size": 64}, r"d=32.*the model has d=64"),
    "layers": ({"num_hidden_layers": 6}, r"4 FFN layers.*the model has 6"),
    "fewer layers": ({"num_hidden_layers": 2}, r"4 FFN layers.*the model has 2"),
    "weights": ({"seed": 7}, r"base_fingerprint=.*the adapter was made for other weights"),
}


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


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_neuron_map_of_another_architecture(neuron_map: NeuronMap, architecture: str) -> None:
    other = build_model("bloom" if architecture == "llama" else "llama", seed=7)
    state = cloned_state(other)
    with pytest.raises(NeuronMapError, match=r"the model has no such module|base_fingerprint|p=|d="):
        get_peft_model(other, make_config(neuron_map))
    assert same_state(other.state_dict(), state)


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
    model.set_language_pair("en-fr")
    model.merge_adapter()
    state = cloned_state(model)
    with pytest.raises(ConfigError, match=r"the base weights hold a merged adapter; call unmerge_adapter\(\) first"):
        model.add_adapter("c", make_config(neuron_map, ["en-de"]))
    assert same_state(model.state_dict(), state) and list(model.peft_config) == ["x", "y"]
    model.unmerge_adapter()
    model.add_adapter("c", make_config(neuron_map, ["en-de"]))
