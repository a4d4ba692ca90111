"""Maps that extend others: what they say of earlier languages and pairs stays; new languages take general neurons."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from peft_landermt import NeuronMap, detect_neurons
from peft_landermt.detection import select_layers
from peft_landermt.detection.partition import extend_partition, partition
from peft_landermt.errors import DetectionError, LanderError, NeuronMapError

from ..conftest import PAIRS, SENTENCES, build_model
from ..tuner.growing import ITALIAN, MORE

TEXTS = {"en": SENTENCES["en"], "it": MORE["it"]}


@pytest.fixture(params=["llama", "bloom"])
def architecture(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def extend(
    base: PreTrainedModel, neuron_map: NeuronMap, tokenizer: PreTrainedTokenizerFast
) -> Callable[..., NeuronMap]:
    """Adds Italian to the map of English, German and French."""

    def run(**options: Any) -> NeuronMap:
        given = {"extends": neuron_map, "num_layers": 3, "general_ratio": 0.7, "progress": False}
        sentences, pairs = options.pop("sentences", TEXTS), options.pop("pairs", ITALIAN)
        return detect_neurons(options.pop("model", base), tokenizer, sentences, pairs, **{**given, **options})

    return run


def test_what_the_map_said_stays(extend: Callable[..., NeuronMap], neuron_map: NeuronMap) -> None:
    found = extend()
    assert found.languages == ("en", "de", "fr", "it") and found.language_pairs == [*PAIRS, *ITALIAN]
    for pair in PAIRS:
        assert found.layers(pair) == neuron_map.layers(pair)
        assert found.layer_changes[pair] == neuron_map.layer_changes[pair]
    given = 0
    for layer, (before, after) in enumerate(zip(neuron_map.neurons, found.neurons, strict=True)):
        for name in ("awareness", "mean_gradient", "mean_abs_activation"):
            assert getattr(after, name)[:3].equal(getattr(before, name)) and getattr(after, name).shape[0] == 4
        for language in ("en", "de", "fr"):
            assert found.specific(layer, language).equal(neuron_map.specific(layer, language))
        assert set(found.specific(layer, "it").tolist()) <= set(neuron_map.general(layer).tolist())
        given += len(found.specific(layer, "it"))
    assert given > 0 and len(found.layers("en-it")) == 3


def test_new_languages_get_what_detecting_all_together_gives(
    extend: Callable[..., NeuronMap], neuron_map: NeuronMap, base: PreTrainedModel, tokenizer: PreTrainedTokenizerFast
) -> None:
    texts, pairs = {**SENTENCES, "it": MORE["it"]}, [*PAIRS, *ITALIAN]
    whole = detect_neurons(base, tokenizer, texts, pairs, num_layers=3, general_ratio=0.7, progress=False)
    found = extend()
    for layer, (anew, after) in enumerate(zip(whole.neurons, found.neurons, strict=True)):
        torch.testing.assert_close(after.awareness, anew.awareness, atol=1e-6, rtol=1e-4)
        expected = [n for n in whole.specific(layer, "it").tolist() if neuron_map.neurons[layer].owner[n] == -1]
        assert found.specific(layer, "it").tolist() == expected
    for pair in ITALIAN:
        assert found.layers(pair) == whole.layers(pair)


def test_saved_signed_and_selected(extend: Callable[..., NeuronMap], neuron_map: NeuronMap, tmp_path: Path) -> None:
    neuron_map.save(tmp_path / "map")
    found = extend(extends=tmp_path / "map")
    assert found == extend() and "|languages:en+de+fr+it|" in found.signature and "|extends:" in found.signature
    assert found.options["extends"] == neuron_map.signature
    found.save(tmp_path / "bigger")
    assert NeuronMap.load(tmp_path / "bigger") == found
    assert len(select_layers(found, 1).layers("en-it")) == 1


def test_a_pair_of_languages_that_are_there(extend: Callable[..., NeuronMap], neuron_map: NeuronMap) -> None:
    found = extend(sentences={key: SENTENCES[key] for key in ("de", "fr")}, pairs=["de-fr"])
    assert found.neurons == neuron_map.neurons and found.language_pairs == [*PAIRS, "de-fr"]


def test_partitions_by_hand() -> None:
    """Six neurons, two languages; then a third, which by eq. 5 would own neurons 0, 3 and 4."""
    awareness = torch.tensor([[9.0, 1, 1, 0, 1, 1], [1, 9, 1, 1, 1, 1], [20, 1, 1, 9, 5, 1]])
    before = partition(awareness[:2], 0.6)
    assert before.tolist() == [0, 1, -1, -1, -1, -1]
    assert partition(awareness, 0.4).tolist() == [2, 1, -1, 2, 2, -1]
    assert extend_partition(before, awareness, 0.4, 2).tolist() == [0, 1, -1, 2, 2, -1]
    assert extend_partition(before, awareness[[0, 1, 1]], 0.4, 2).tolist() == before.tolist()


REFUSED: dict[str, tuple[dict[str, Any], type[LanderError], str]] = {
    "another base": ({"model": 1}, NeuronMapError, "is of another base"),
    "another scale": ({"normalize_awareness": False}, DetectionError, "normalize_awareness=False"),
    "nothing new": ({"pairs": ["en-de"], "sentences": SENTENCES}, DetectionError, "are all in the map"),
    "no such map": ({"extends": "nowhere"}, NeuronMapError, "no such file"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused(extend: Callable[..., NeuronMap], architecture: str, case: str) -> None:
    options, error, message = copy.copy(REFUSED[case][0]), *REFUSED[case][1:]
    if "model" in options:
        options["model"] = build_model(architecture, seed=1)
    with pytest.raises(error, match=message):
        extend(**options)


def test_other_ffns(extend: Callable[..., NeuronMap], neuron_map: NeuronMap) -> None:
    fewer = dataclasses.replace(neuron_map, fingerprint=None, width=neuron_map.width + 1)
    with pytest.raises(NeuronMapError, match="other FFNs"):
        extend(extends=fewer)
