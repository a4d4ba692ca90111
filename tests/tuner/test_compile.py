"""A whole adapted model under torch.compile; one FFN is a behaviour of `test_behaviours.py`."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import PreTrainedModel

from peft_landermt import NeuronMap

from .helpers import adapt, ids


@pytest.mark.slow
@pytest.mark.parametrize("architecture", ["llama"], indirect=True)
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
