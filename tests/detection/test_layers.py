"""Eq. 1 and 2: representation analysis."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import PreTrainedModel

from peft_landermt import NeuronMap, detect_neurons
from peft_landermt.detection.layers import (
    ActivationStatistic,
    layer_changes,
    layers_in_stacks,
    mean_activation,
    number_of_layers,
    relevant_layers,
    select_layers,
)
from peft_landermt.errors import DetectionError

from ..conftest import PAIRS, SENTENCES
from ..translation.test_encoder_decoders import build as build_encoder_decoder
from .reference import OPTIONS, captured

PAD = (100.0, -700.0)
MASK = torch.tensor([[1, 1, 0], [1, 1, 1]])
# three layers of p = 2 neurons, two prompts of 2 and 3 tokens, the first one padded
TOY = torch.tensor(
    [
        [[(1, -3), (2, 4), PAD], [(0, 2), (4, 0), (-6, 0)]],
        [[(1, 1), (2, 2), PAD], [(1, 3), (0, 0), (1, 1)]],
        [[(-2, -2), (0, 4), PAD], [(0, 0), (3, 3), (-3, 0)]],
    ]
)
# Eq. 1. Token means of h, then their mean over tokens:
#   layer 0: (-1, 3) -> 1, (1, 2, -3) -> 0;  layer 1: (1, 2) -> 1.5, (2, 0, 1) -> 1;  layer 2: (-2, 2) -> 0,
#   (0, 3, -1.5) -> 0.5.  With |h|: (2, 3) -> 2.5, (1, 2, 3) -> 2;  as before;  (2, 2) -> 2, (0, 3, 1.5) -> 1.5.
MEANS = {
    "mean": [[1.0, 0.0], [1.5, 1.0], [0.0, 0.5]],
    "mean_abs": [[2.5, 2.0], [1.5, 1.0], [2.0, 1.5]],
}
# Eq. 2. Means over prompts 0.5, 1.25, 0.25, hence D = (0.75, 1); with |h| 2.25, 1.25, 1.75, hence D = (1, 0.5).
CHANGES = {"mean": [0.75, 1.0], "mean_abs": [1.0, 0.5]}
MOST_RELEVANT = {"mean": [1], "mean_abs": [0]}


@pytest.mark.parametrize("statistic", ["mean", "mean_abs"])
def test_three_layers_by_hand(statistic: ActivationStatistic) -> None:
    activations = torch.stack([mean_activation(layer, MASK, statistic) for layer in TOY])
    assert activations.tolist() == MEANS[statistic]
    changes = layer_changes(activations)
    assert changes.tolist() == CHANGES[statistic]
    assert relevant_layers(changes, 1) == MOST_RELEVANT[statistic]


@pytest.mark.parametrize("statistic", ["mean", "mean_abs"])
@pytest.mark.parametrize("flip", [False, True], ids=["right", "left"])
def test_padding_is_ignored(statistic: ActivationStatistic, flip: bool) -> None:
    hidden, mask = (TOY[0].flip(1), MASK.flip(1)) if flip else (TOY[0], MASK)
    alone = mean_activation(TOY[0][:1, :2], MASK[:1, :2], statistic)
    assert mean_activation(hidden, mask, statistic)[0] == alone[0]


def test_half_precision_is_averaged_in_float32() -> None:
    # (1 + 1.0078125) / 2 = 1.00390625 = 1 + 2^-8 has 9 significant bits; bfloat16 has 8
    hidden = torch.tensor([[[1.0, 1.0078125]] * 3], dtype=torch.bfloat16)
    found = mean_activation(hidden, torch.ones(1, 3, dtype=torch.int64))
    assert found.dtype == torch.float32
    assert found.tolist() == [1.00390625]


def test_change_is_between_the_means_over_prompts() -> None:
    # means over prompts 0.5, 0.5, 2: D = (0, 1.5), although layer 0 and 1 differ by 1 in every single prompt
    assert layer_changes(torch.tensor([[1.0, 0.0], [0.0, 1.0], [2.0, 2.0]])).tolist() == [0.0, 1.5]


@pytest.mark.parametrize(
    ("changes", "num_layers", "expected"),
    [
        ([1.0, 3.0, 2.0], 2, [1, 2]),
        ([3.0, 1.0, 2.0], 2, [0, 2]),
        ([1.0, 2.0, 2.0, 2.0], 2, [1, 2]),  # a tie goes to the lower layer
        ([0.0, 0.0, 0.0], 1, [0]),
        ([1.0, 0.0] * 300, 3, [0, 2, 4]),  # more than a sort handles by insertion
        ([5.0, 1.0, 2.0], 3, [0, 1, 2]),  # the last layer comes last
        ([0.0, 0.0, 0.0], 4, [0, 1, 2, 3]),
        ([], 1, [0]),  # a model of one layer
    ],
)
def test_relevant_layers(changes: list[float], num_layers: int, expected: list[int]) -> None:
    assert relevant_layers(torch.tensor(changes), num_layers) == expected


@pytest.mark.parametrize("num_layers", [0, -1, 5, True, 2.0, "2", None])
def test_number_of_layers_out_of_range(num_layers: Any) -> None:
    with pytest.raises(DetectionError, match=r"num_layers=.*from 1 to 4"):
        number_of_layers(num_layers, ["model"] * 4)


@pytest.mark.parametrize(("num_layers", "expected"), [(1, 1), (4, 4), ("all", 4)])
def test_number_of_layers_in_range(num_layers: Any, expected: int) -> None:
    assert number_of_layers(num_layers, ["model"] * 4) == expected


def test_all_layers_of_stacks_of_different_size() -> None:
    """An encoder of three layers and a decoder of two: a number has to fit both, and `all` is all of each."""
    stacks = ["encoder"] * 3 + ["decoder"] * 2
    with pytest.raises(DetectionError, match="from 1 to 2"):
        number_of_layers(3, stacks)
    every = number_of_layers("all", stacks)
    assert layers_in_stacks([0.5, 0.1, None, 0.2], stacks, every) == (0, 1, 2, 3, 4)


NAMES = {"en": "English", "de": "German", "fr": "French"}


@pytest.mark.parametrize("statistic", ["mean", "mean_abs"])
def test_layers_of_a_model_equal_a_naive_loop(
    architecture: str, base: PreTrainedModel, tokenizer: Any, statistic: ActivationStatistic
) -> None:
    """D_i of every pair against one unpadded prompt at a time; then k and its order."""
    found = detect_neurons(base, tokenizer, **{**OPTIONS, "batch_size": 3}, activation_statistic=statistic)
    for pair in PAIRS:
        source, target = (NAMES[code] for code in pair.split("-"))
        means = []
        for text in SENTENCES[pair[:2]]:
            prompt = f"Translate this from {source} to {target}:\n{text}\n{target}:"
            with torch.no_grad(), captured(base, architecture) as hidden:
                base(input_ids=torch.tensor([tokenizer(prompt)["input_ids"]]))
            means.append([float((h.abs() if statistic == "mean_abs" else h).double().mean()) for h in hidden])
        average = torch.tensor(means).mean(0)
        expected = (average[:-1] - average[1:]).abs()
        torch.testing.assert_close(torch.tensor(found.layer_changes[pair]), expected, rtol=1e-4, atol=1e-6)
        assert found.layers(pair) == sorted(expected.argsort(descending=True)[:2].tolist())


def test_all_layers(neuron_map: NeuronMap, base: PreTrainedModel, tokenizer: Any) -> None:
    found = detect_neurons(base, tokenizer, **{**OPTIONS, "num_layers": 4, "language_pairs": ["en-de"]})
    assert found.layers("en-de") == [0, 1, 2, 3]
    assert set(neuron_map.layers("en-de")) < {0, 1, 2, 3}


@pytest.mark.parametrize("num_layers", [1, 3, 4])
def test_other_layers_without_detecting_again(
    neuron_map: NeuronMap, base: PreTrainedModel, tokenizer: Any, num_layers: int
) -> None:
    before = neuron_map.pair_layers
    chosen = select_layers(neuron_map, num_layers)
    assert chosen == detect_neurons(base, tokenizer, **{**OPTIONS, "num_layers": num_layers})
    assert chosen.signature != neuron_map.signature and neuron_map.pair_layers == before
    assert select_layers(chosen, OPTIONS["num_layers"]) == neuron_map


@pytest.mark.parametrize("num_layers", [0, 5, 2.0, True])
def test_more_layers_than_there_are(neuron_map: NeuronMap, num_layers: Any) -> None:
    with pytest.raises(DetectionError, match=r"num_layers=.*must be an integer from 1 to 4"):
        select_layers(neuron_map, num_layers)


def test_other_layers_of_an_encoder_decoder() -> None:
    model, tokenizer = build_encoder_decoder("t5")
    sentences, options = {"en": ["tea", "house"], "de": ["Tee", "Haus"]}, {"progress": False}
    found = detect_neurons(model, tokenizer, sentences, ["en-de", "de-en"], num_layers=1, **options)
    expected = detect_neurons(model, tokenizer, sentences, ["en-de", "de-en"], num_layers=2, **options)
    assert select_layers(found, 2) == expected
    with pytest.raises(DetectionError, match="from 1 to 2"):
        select_layers(found, 3)
