"""How strongly sentences pull at the weights of FFN and attention, held to autograd's gradients of these weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from peft_landermt import NeuronMap, detect_neurons
from peft_landermt.attention import ROLES, layer_of, recognise_attention
from peft_landermt.detection import select_layers
from peft_landermt.detection.gradients import squared_norms
from peft_landermt.errors import DetectionError, NeuronMapError
from peft_landermt.ffn import find_ffns
from peft_landermt.linear import weight_rows
from peft_landermt.neuron_map_checks import PARTS

from ..conftest import PAIRS, SENTENCES
from ..tuner.test_architectures import tiny
from .reference import OPTIONS

GRADIENT: dict[str, Any] = {**OPTIONS, "layer_statistic": "gradient"}


def test_squared_norms_by_hand() -> None:
    """G = δ_1 x_1ᵀ + δ_2 x_2ᵀ = (1, 0)ᵀ (1, 2) + (1, 1)ᵀ (0, 1) = ((1, 3), (0, 1)), with the squared norm 11."""
    states = torch.tensor([[[1.0, 2.0], [0.0, 1.0]]])
    gradient = torch.tensor([[[1.0, 0.0], [1.0, 1.0]]])
    assert squared_norms(states, gradient).tolist() == [11.0]


def expected(model: Any, tokenizer: Any, language: str) -> torch.Tensor:
    """(layers, parts) by autograd: sentence by sentence, the whole gradient of every weight."""
    ffns = find_ffns(model)
    found = torch.zeros(len(ffns), len(PARTS))
    for text in SENTENCES[language]:
        inputs = {name: torch.tensor([ids]) for name, ids in tokenizer(text).items() if name == "input_ids"}
        model.zero_grad()
        model(**inputs, labels=inputs["input_ids"]).loss.backward()
        for layer, ffn in enumerate(ffns):
            weights = [
                ("output" if name == ffn.output else "input", ffn.module.get_submodule(name), None)
                for name in ffn.projections
            ]
            for module in model.get_submodule(layer_of(ffn.name)).modules():
                if (attention := recognise_attention(module)) is not None:
                    weights += [
                        (role, module.get_submodule(attention.projection(role)), attention.rows(role))
                        for role in ROLES
                    ]
            for part, module, rows in weights:
                gradient = _rows(module)
                gradient = gradient if rows is None else gradient[rows]
                found[layer, PARTS.index(part)] += gradient.square().sum() / sum(gradient.shape)
    model.zero_grad()
    return found / len(SENTENCES[language])


def _rows(module: nn.Module) -> torch.Tensor:
    """Gradient of a linear layer's weight, (out, in)."""
    weight: Any = module.weight
    return weight.grad if weight_rows(module) is weight else weight.grad.t()


@pytest.mark.parametrize("name", ["Llama (EuroLLM, Tower, SmolLM)", "Gemma 3", "BLOOM", "GPT-2", "OPT", "Phi-3"])
def test_gradients_are_those_of_autograd(name: str, tokenizer: Any) -> None:
    model = tiny(name).requires_grad_(True)
    found = detect_neurons(model, tokenizer, **GRADIENT)
    assert found.gradients is not None
    for index, language in enumerate(found.languages):
        torch.testing.assert_close(found.gradients[index], expected(model, tokenizer, language), rtol=2e-3, atol=1e-7)


def test_an_encoder_decoder_has_them_for_both_stacks(tokenizer: Any) -> None:
    found = detect_neurons(tiny("NLLB, M2M100"), tokenizer, **GRADIENT)
    assert found.gradients is not None and bool((found.gradients > 0).all())


@pytest.mark.parametrize("batch_size", [1, 3])
def test_batches_do_not_matter(base: Any, tokenizer: Any, batch_size: int) -> None:
    found = detect_neurons(base, tokenizer, **GRADIENT)
    other = detect_neurons(base, tokenizer, **{**GRADIENT, "batch_size": batch_size})
    assert found.gradients is not None and other.gradients is not None
    torch.testing.assert_close(found.gradients, other.gradients, rtol=1e-3, atol=1e-8)
    assert found.pair_layers == other.pair_layers


def test_layers_are_those_that_are_pulled_at_most(base: Any, tokenizer: Any, tmp_path: Path) -> None:
    found = detect_neurons(base, tokenizer, **{**GRADIENT, "num_layers": 1})
    plain = detect_neurons(base, tokenizer, **{**OPTIONS, "num_layers": 1})
    assert found.neurons == plain.neurons and found.layer_changes == plain.layer_changes
    assert plain.gradients is None and "layers_by" not in plain.signature and "|layers_by:gradient" in found.signature
    assert found.gradients is not None
    for pair in PAIRS:
        spoken = [found.languages.index(language) for language in pair.split("-")]
        pulls = found.gradients[spoken][:, :, [PARTS.index("input"), PARTS.index("output")]].sum(dim=(0, 2))
        assert found.layers(pair) == [int(pulls.argmax())]
        means = found.gradients[spoken].mean(dim=(0, 1))
        assert list(found.parts(pair)) == [PARTS[index] for index in means.argsort(descending=True)]
    more = detect_neurons(base, tokenizer, **{**GRADIENT, "num_layers": 2})
    assert select_layers(found, 2) == more
    found.save(tmp_path / "map.safetensors")
    assert NeuronMap.load(tmp_path / "map.safetensors") == found
    with pytest.raises(NeuronMapError, match="layer_statistic"):
        plain.parts(PAIRS[0])


def test_a_map_with_gradients_grows_with_gradients(base: Any, tokenizer: Any) -> None:
    options = {name: value for name, value in GRADIENT.items() if name not in ("sentences", "language_pairs")}
    english_german = {language: SENTENCES[language] for language in ("en", "de")}
    first = detect_neurons(base, tokenizer, english_german, ["en-de"], **options)
    french = {language: SENTENCES[language] for language in ("en", "fr")}
    grown = detect_neurons(base, tokenizer, french, ["en-fr"], **options, extends=first)
    assert first.gradients is not None and grown.gradients is not None
    assert grown.gradients[:2].equal(first.gradients) and grown.layers("en-de") == first.layers("en-de")
    only_pairs = detect_neurons(base, tokenizer, english_german, ["de-en"], **options, extends=first)
    assert only_pairs.gradients is not None and only_pairs.gradients.equal(first.gradients)
    plain = detect_neurons(base, tokenizer, english_german, ["en-de"])
    with pytest.raises(DetectionError, match="without gradients"):
        detect_neurons(base, tokenizer, french, ["en-fr"], **options, extends=plain)


def test_wrong_statistic(base: Any, tokenizer: Any) -> None:
    with pytest.raises(DetectionError, match="layer_statistic='weights'"):
        detect_neurons(base, tokenizer, **{**OPTIONS, "layer_statistic": "weights"})
