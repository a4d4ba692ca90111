"""Layers chosen by gradients."""

from __future__ import annotations

import copy
import importlib
from types import ModuleType

import pytest
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from ..conftest import SENTENCES, build_model
from .helpers import SCRIPTS


@pytest.fixture
def controls(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(SCRIPTS))
    return importlib.import_module("controls")


def test_norms_are_slopes(controls: ModuleType, tokenizer: PreTrainedTokenizerFast) -> None:
    """A step of length s along the gradient of an FFN's weights raises the loss by s times its norm, at first."""
    model = build_model("llama").double()
    inputs = tokenizer(SENTENCES["de"][0], return_tensors="pt")

    def loss(model: PreTrainedModel) -> torch.Tensor:
        return model(**inputs, labels=inputs["input_ids"]).loss

    norms = controls.gradient_norms(model, tokenizer, [SENTENCES["de"][0]])
    assert norms.shape == (4,)
    assert all(weight.grad is None for weight in model.parameters())
    for layer, norm in enumerate(norms.tolist()):
        slopes = torch.autograd.grad(loss(model), list(model.model.layers[layer].mlp.parameters()))
        length = sum(slope.square().sum() for slope in slopes) ** 0.5
        losses = []
        for step in (1e-3, -1e-3):
            moved = copy.deepcopy(model)
            with torch.no_grad():
                for weight, slope in zip(moved.model.layers[layer].mlp.parameters(), slopes, strict=True):
                    weight.add_(slope / length, alpha=step)
            losses.append(loss(moved).item())
        assert (losses[0] - losses[1]) / 2e-3 == pytest.approx(norm, rel=1e-3)


def test_norms_are_averaged_over_sentences(controls: ModuleType, tokenizer: PreTrainedTokenizerFast) -> None:
    model = build_model("bloom")
    first, second = ([text] for text in SENTENCES["de"][:2])
    both = controls.gradient_norms(model, tokenizer, first + second)
    alone = [controls.gradient_norms(model, tokenizer, texts) for texts in (first, second)]
    assert not torch.allclose(*alone)
    torch.testing.assert_close(both, sum(alone) / 2)


def test_layers_of_a_pair_are_those_of_both_languages(controls: ModuleType) -> None:
    norms = {"en": torch.tensor([4.0, 1.0, 0.0, 2.0]), "de": torch.tensor([0.0, 1.0, 5.0, 1.5]), "fr": torch.ones(4)}
    found = controls.layers_by_gradient(norms, ["en-de", "en-fr", "fr-de"], 2)
    assert found == {"en-de": (0, 2), "en-fr": (0, 3), "fr-de": (2, 3)}
