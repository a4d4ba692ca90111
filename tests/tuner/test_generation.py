"""`generate` with pairs and adapters for each sample."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import PreTrainedModel

from peft_landermt import NeuronMap

from ..conftest import PAIRS
from .helpers import adapt, ids, two_adapters


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


@pytest.mark.parametrize("architecture", ["llama"], indirect=True)
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
