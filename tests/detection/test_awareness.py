"""Eq. 3 and 4: language awareness by Taylor expansion."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from peft_landermt import NeuronMap, detect_neurons
from peft_landermt.detection.awareness import normalize, sum_over_tokens, taylor_awareness

from ..conftest import ARCHITECTURES, PAIRS, SENTENCES, build_model
from .reference import OPTIONS, build, naive_awareness, output_projections, spearman


def assert_equal_up_to(rtol: float, found: torch.Tensor, expected: torch.Tensor, signed: bool = False) -> None:
    """Every number agrees relative to itself, or, where signed terms cancel in it, relative to the largest.

    A neuron of a thousandth of the largest Phi (a ReLU hardly ever on) may differ by a thousandth of `rtol` more.
    """
    atol = rtol * float(expected.abs().max()) * (1.0 if signed else 1e-3)
    torch.testing.assert_close(found, expected, rtol=rtol, atol=atol)


def test_by_hand() -> None:
    # neuron 0: |0.5 * 2| = 1, |-1 * 3| = 3; neuron 1: |2 * -1| = 2, |0 * 4| = 0; the third token is padding
    activation = torch.tensor([[[2.0, -1.0], [3.0, 4.0], [50.0, 50.0]]])
    gradient = torch.tensor([[[0.5, 2.0], [-1.0, 0.0], [50.0, 50.0]]])
    assert taylor_awareness(activation, gradient)[0, :2].tolist() == [[1.0, 2.0], [3.0, 0.0]]
    sums = sum_over_tokens(activation, gradient, torch.tensor([[1, 1, 0]]))
    assert sums.tolist() == [[4.0, 2.0], [-0.5, 2.0], [5.0, 5.0]]
    flat = sum_over_tokens(activation.flatten(0, 1), gradient, torch.tensor([[1, 0, 0]]))
    assert flat.tolist() == [[1.0, 2.0], [0.5, 2.0], [2.0, 1.0]]


def test_half_precision_is_multiplied_in_float32() -> None:
    # 1.0078125 ** 2 = 1.01568603515625 needs 15 bits; bfloat16 has 8
    number = torch.tensor([1.0078125], dtype=torch.bfloat16)
    assert taylor_awareness(number, number).item() == 1.01568603515625


@pytest.mark.parametrize("architecture", [*ARCHITECTURES, "opt", "gpt2"])
@pytest.mark.parametrize("batch_size", [1, 3])
def test_equals_plain_autograd(architecture: str, batch_size: int, tokenizer: Any) -> None:
    model = build(architecture).double()  # so that h near the kink of a ReLU is not mere rounding
    found = detect_neurons(model, tokenizer, **OPTIONS, batch_size=batch_size, normalize_awareness=False)
    for index, texts in enumerate(SENTENCES.values()):
        expected = naive_awareness(model, architecture, tokenizer, texts)
        assert found.num_layers == len(expected.awareness) == 4
        for layer, neurons in enumerate(found.neurons):
            assert_equal_up_to(1e-6, neurons.awareness[index], expected.awareness[layer])
            assert_equal_up_to(1e-6, neurons.mean_abs_activation[index], expected.mean_abs_activation[layer])
            assert_equal_up_to(1e-6, neurons.mean_gradient[index], expected.mean_gradient[layer], signed=True)


def test_normalised_awareness_sums_to_one(neuron_map: NeuronMap, base: Any, tokenizer: Any) -> None:
    literal = detect_neurons(base, tokenizer, **OPTIONS, normalize_awareness=False)
    for scaled, plain in zip(neuron_map.neurons, literal.neurons, strict=True):
        torch.testing.assert_close(scaled.awareness.sum(dim=1), torch.ones(3))
        torch.testing.assert_close(scaled.awareness, normalize(plain.awareness))
        assert not torch.allclose(plain.awareness.sum(dim=1), torch.ones(3), rtol=0.01)
        # the gate's gradients and activations stay as they are
        torch.testing.assert_close(scaled.mean_gradient, plain.mean_gradient)
        torch.testing.assert_close(scaled.mean_abs_activation, plain.mean_abs_activation)


def _measured_change(model: nn.Module, ids: torch.Tensor) -> torch.Tensor:
    """Mean over tokens of |L with h_i = 0 at that token - L|: one forward pass per token and neuron, (layers, p)."""
    length, predicted = ids.shape[1], ids.shape[1] - 1
    rows = []

    def losses(batch: torch.Tensor) -> torch.Tensor:
        logits = model(input_ids=batch).logits[:, :-1]
        nll = F.cross_entropy(logits.transpose(1, 2), batch[:, 1:], reduction="none")
        return nll.sum(dim=1) / predicted

    with torch.no_grad():
        unchanged = losses(ids)
        for projection in output_projections(model, "llama"):
            neurons = projection.in_features
            row = torch.arange(length * neurons)

            def ablate(_module: nn.Module, args: tuple[torch.Tensor], row=row, neurons=neurons) -> tuple[torch.Tensor]:
                hidden = args[0].clone()
                hidden[row, row // neurons, row % neurons] = 0
                return (hidden,)

            handle = projection.register_forward_pre_hook(ablate)
            change = (losses(ids.expand(length * neurons, -1)) - unchanged).abs()
            handle.remove()
            rows.append(change.reshape(length, neurons).mean(dim=0))
    return torch.stack(rows)


def test_predicts_the_loss_change_of_ablation(tokenizer: Any) -> None:
    """Truth: what eq. 3 estimates is the change of the loss when h_i is zero at one token."""
    model = build_model("llama", initializer_range=0.08)
    sentences = {"en": ["Tea is hot."], "de": ["Tee, heiß."]}
    found = detect_neurons(
        model, tokenizer, sentences, ["en-de"], num_layers=1, normalize_awareness=False, progress=False
    )
    model.double()  # differences of losses need the digits
    for index, texts in enumerate(sentences.values()):
        measured = _measured_change(model, torch.tensor([tokenizer(texts[0])["input_ids"]]))
        for layer, neurons in enumerate(found.neurons):
            estimate = neurons.awareness[index]
            # |h| alone reaches 0.75 to 0.93 here, |dL/dh| alone 0.54 at most, their product 0.998
            assert spearman(estimate, measured[layer]) >= 0.98
            # and not only the order: the sums agree to 2 percent
            assert float(estimate.sum() / measured[layer].sum()) == pytest.approx(1.0, abs=0.05)


def _assert_same_map(found: NeuronMap, expected: NeuronMap) -> None:
    for ours, theirs in zip(found.neurons, expected.neurons, strict=True):
        assert torch.equal(ours.owner, theirs.owner)
        assert_equal_up_to(1e-5, ours.awareness, theirs.awareness)
        assert_equal_up_to(1e-5, ours.mean_abs_activation, theirs.mean_abs_activation)
        assert_equal_up_to(1e-5, ours.mean_gradient, theirs.mean_gradient, signed=True)
    assert found.pair_layers == expected.pair_layers
    assert found.signature == expected.signature


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("batch_size", [3, 100])
def test_batch_size_does_not_matter(architecture: str, batch_size: int, tokenizer: Any) -> None:
    model = build(architecture)
    one = detect_neurons(model, tokenizer, **OPTIONS, batch_size=1)
    _assert_same_map(detect_neurons(model, tokenizer, **OPTIONS, batch_size=batch_size), one)


def test_order_of_sentences_does_not_matter(llama: nn.Module, tokenizer: Any) -> None:
    backwards = {language: texts[::-1] for language, texts in SENTENCES.items()}
    found = detect_neurons(llama, tokenizer, **{**OPTIONS, "sentences": backwards})
    expected = detect_neurons(llama, tokenizer, **OPTIONS)
    for ours, theirs in zip(found.neurons, expected.neurons, strict=True):
        assert torch.equal(ours.owner, theirs.owner)
        assert_equal_up_to(1e-5, ours.awareness, theirs.awareness)


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_side_does_not_matter(side: str, llama: nn.Module, tokenizer: Any) -> None:
    unpadded = detect_neurons(llama, tokenizer, **OPTIONS, batch_size=1)
    before = (tokenizer.padding_side, tokenizer.truncation_side, tokenizer.pad_token)
    try:
        tokenizer.padding_side = side
        backend = tokenizer.backend_tokenizer.to_str()
        _assert_same_map(detect_neurons(llama, tokenizer, **OPTIONS, batch_size=4), unpadded)
        assert tokenizer.padding_side == side
        assert tokenizer.backend_tokenizer.to_str() == backend
    finally:
        tokenizer.padding_side = before[0]
    assert (tokenizer.padding_side, tokenizer.truncation_side, tokenizer.pad_token) == before


def test_tokenizer_without_padding_token(llama: nn.Module, tokenizer: Any) -> None:
    expected = detect_neurons(llama, tokenizer, **OPTIONS)
    pad = tokenizer.pad_token
    try:
        tokenizer.pad_token = None
        _assert_same_map(detect_neurons(llama, tokenizer, **OPTIONS), expected)
        assert tokenizer.pad_token is None
    finally:
        tokenizer.pad_token = pad


def test_max_length_cuts_sentences(llama: nn.Module, tokenizer: Any) -> None:
    # one token per character after <bos>: 6 tokens are 5 characters
    short = {language: [text[:5] for text in texts] for language, texts in SENTENCES.items()}
    found = detect_neurons(llama, tokenizer, **OPTIONS, max_length=6)
    expected = detect_neurons(llama, tokenizer, **{**OPTIONS, "sentences": short})
    for ours, theirs in zip(found.neurons, expected.neurons, strict=True):
        assert_equal_up_to(1e-5, ours.awareness, theirs.awareness)


def test_languages_outside_the_pairs_take_part(llama: nn.Module, tokenizer: Any) -> None:
    """Eq. 5 compares all languages given, whichever pairs are asked for."""
    found = detect_neurons(llama, tokenizer, **{**OPTIONS, "language_pairs": PAIRS[:1]})
    expected = detect_neurons(llama, tokenizer, **OPTIONS)
    assert found.languages == expected.languages == ("en", "de", "fr")
    for ours, theirs in zip(found.neurons, expected.neurons, strict=True):
        assert torch.equal(ours.owner, theirs.owner)
        assert torch.equal(ours.awareness, theirs.awareness)
