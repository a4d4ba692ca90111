"""The forward pass, merging, gradients, sizes and initial values, by calculations with few numbers."""

from __future__ import annotations

import math

import pytest
import torch
from peft import get_peft_model
from transformers import M2M100Config, M2M100ForConditionalGeneration

from peft_landermt import LsloConfig

from .helpers import called_with, layer_by_hand

X = torch.ones(2, 1, 2)
EXPECTED = {
    "source": [(3.0, 1.0), (1.0, 4.0)],
    "target": [(1.0, 4.0), (3.0, 1.0)],
    "learned": [(1.5, 3.25), (2.5, 1.75)],
}
"""For en-de and de-en: W = I, x = (1, 1); en adds (2, 0), de adds (0, 3); weights 1/4 and 3/4."""


def by_hand(word: str, scaling: float = 1.0):
    layer = layer_by_hand(word, {"en": 1, "de": 1}, scaling=scaling)
    values = {"en_A": [[1.0, 0.0]], "en_B": [[2.0], [0.0]], "de_A": [[0.0, 1.0]], "de_B": [[0.0], [3.0]]}
    with torch.no_grad():
        for name, value in values.items():
            layer.blocks("default").get_parameter(name).copy_(torch.tensor(value) / (scaling if "_B" in name else 1))
        if word == "learned":
            layer.blocks("default").index_logits.copy_(torch.tensor([0.0, math.log(3)]))
    return layer


@pytest.mark.parametrize("tokens", [1, 40])
@pytest.mark.parametrize("scaling", [1.0, 0.5])
@pytest.mark.parametrize("word", EXPECTED)
def test_forward(word: str, scaling: float, tokens: int) -> None:
    layer = by_hand(word, scaling)
    expected = torch.tensor(EXPECTED[word])
    with called_with(layer, "en-de", "de-en"):
        output = layer(X.expand(2, tokens, 2))
        torch.testing.assert_close(output, expected.unsqueeze(1).expand(2, tokens, 2))
    for index, pair in enumerate(("en-de", "de-en")):
        with called_with(layer, pair):
            torch.testing.assert_close(layer(X[:1]).squeeze(1), expected[index : index + 1])


MERGED = {"source": [[3.0, 0], [0, 1]], "target": [[1.0, 0], [0, 4]], "learned": [[1.5, 0], [0, 3.25]]}
"""For en-de: I + B A of en, of de, and 1/4 and 3/4 of both."""


@pytest.mark.parametrize("word", MERGED)
def test_merged(word: str) -> None:
    layer = by_hand(word)
    layer.routing.chosen["default"] = "en-de"
    layer.merge()
    torch.testing.assert_close(layer.base_layer.weight.data, torch.tensor(MERGED[word]))
    layer.unmerge()
    assert layer.base_layer.weight.equal(torch.eye(2))


def test_gradient_of_the_index() -> None:
    """The sum of the first sample's output, 2 + 1/4 · 2 + 3/4 · 3, by the logits: ± 1/4 · 3/4 · (2 - 3)."""
    layer = by_hand("learned")
    with called_with(layer, "en-de", "de-en"):
        layer(X)[0].sum().backward()
    gradient = layer.blocks("default").index_logits.grad
    torch.testing.assert_close(gradient, torch.tensor([-0.1875, 0.1875]))


def test_gradients_reach_the_languages_of_the_batch_only() -> None:
    layer = by_hand("source")
    with called_with(layer, "en-de", "en-de"):
        layer(X).sum().backward()
    gradients = {name: weight.grad for name, weight in layer.blocks("default").named_parameters()}
    assert gradients["de_A"] is None and gradients["de_B"] is None
    torch.testing.assert_close(gradients["en_B"], torch.full((2, 1), 2.0))  # A x = 1 for both samples


@pytest.mark.parametrize(("init", "rank", "bound"), [(True, 4, 1 / 8), ("paper", 4, 1 / 2), ("paper", 16, 1 / 4)])
def test_initial_values(init: bool | str, rank: int, bound: float) -> None:
    """A within ±1/√in, here in = 64, or ±1/√r; nearly as far as that in 256 or more draws."""
    from peft_landermt.lslo.factors import LanguageFactors

    torch.manual_seed(0)
    options = (64, 32, torch.device("cpu"), torch.float32)
    factors = LanguageFactors("source", {"en": rank}, *options, init_weights=init)  # type: ignore[arg-type]
    factor_a, factor_b = factors.factors("en")
    assert 0.95 * bound < float(factor_a.abs().max()) <= bound and not factor_b.any()


HIGH, MEDIUM, LOW = ("en", "fr", "it", "de"), ("nl", "zh", "ja", "ko"), ("oc", "or", "sd", "wo")


def test_sizes_of_the_paper() -> None:
    """M2M-124: 12 and 12 layers, d = 1024, 4096 neurons. Per unit of rank, both layers of an FFN and q, k, v of every
    attention: encoder 12 (3 · 2048 + 2 · 5120), decoder 12 (6 · 2048 + 2 · 5120), together 466,944; with ranks
    2, 2 and 8 of four languages each, 48 times as many."""
    with torch.device("meta"):
        base = M2M100ForConditionalGeneration(M2M100Config(vocab_size=16, d_model=1024))
    pairs = [f"{source}-{target}" for source in (*HIGH, *MEDIUM, *LOW) for target in HIGH + MEDIUM + LOW]
    pairs = [pair for pair in pairs if len(set(pair.split("-"))) > 1]
    ranks = {**dict.fromkeys(HIGH + MEDIUM, 2), **dict.fromkeys(LOW, 8)}
    config = LsloConfig.paper(language_pairs=pairs, rank=ranks, task_type="SEQ_2_SEQ_LM")
    model = get_peft_model(base, config)
    count = sum(weight.numel() for weight in model.parameters() if weight.requires_grad)
    assert count == 22_413_312 == 48 * 466_944
    assert model.peft_config["default"].index == {
        "encoder": ["source"] * 9 + ["target"] * 3,
        "decoder": ["target"] * 12,
    }
    assert config.index is None, "what the caller holds stays as it was"
