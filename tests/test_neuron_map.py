"""The neuron map: accessors, conditional awareness, and its file."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path
from typing import Any

import pytest
import torch

from peft_landermt import NeuronMap, tensor_file
from peft_landermt.errors import LanguagePairError, NeuronMapError
from peft_landermt.neuron_map import GENERAL, LayerNeurons, conditional_awareness

TENSORS = ("owner", "awareness", "mean_gradient", "mean_abs_activation")


def _layer(name: str, owner: list[int], awareness: list[list[float]]) -> LayerNeurons:
    phi = torch.tensor(awareness, dtype=torch.float32)
    return LayerNeurons(name, torch.tensor(owner), phi, phi - 2, phi + 1)


@pytest.fixture
def small() -> NeuronMap:
    """Two layers of six neurons, three languages."""
    return NeuronMap(
        languages=("en", "de", "fr"),
        pair_layers={"en-de": (0, 1), "de-en": (1,), "en-fr": (0,)},
        layer_changes={"en-de": (0.5,), "de-en": (0.25,), "en-fr": (1 / 3,)},
        neurons=(
            _layer(
                "layers.0.mlp",
                [GENERAL, 0, 1, GENERAL, 2, 0],
                [[1, 2, 3, 4, 5, 6], [3, 4, 5, 0, 1, 2], [0, 0, 0, 2, 7, 0]],
            ),
            _layer("layers.1.mlp", [GENERAL] * 5 + [2], [[1, 1, 1, 1, 1, 1], [2, 2, 2, 2, 2, 2], [0, 0, 0, 0, 0, 0]]),
        ),
        width=4,
        fingerprint="0123456789abcdef",
        signature="base:toy#0123456789abcdef|data:none",
        options={"num_layers": 2, "general_ratio": 0.7, "normalize_awareness": True},
    )


def test_accessors_by_hand(small: NeuronMap) -> None:
    assert small.language_pairs == ["en-de", "de-en", "en-fr"]
    assert small.num_layers == 2
    assert small.layers("en-de") == [0, 1]
    assert small.general(0).tolist() == [0, 3]
    assert {code: small.specific(0, code).tolist() for code in small.languages} == {"en": [1, 5], "de": [2], "fr": [4]}
    assert small.specific(1, "en").shape == (0,)


# Phi of a pair is the mean of its languages'.
#   en-de, layer 0: (2, 3, 4, 2, 3, 4); specific to en 1, 5 and to de 2: 3 + 4 + 4 = 11; general 0, 3: 2 + 2 = 4
#   en-fr, layer 0: (0.5, 1, 1.5, 3, 6, 3); specific to en 1, 5 and to fr 4: 1 + 3 + 6 = 10; general: 0.5 + 3 = 3.5
#   en-de, layer 1: 1.5 each; none specific to en or de; five general: 7.5
#   en-fr, layer 1: 0.5 each; 5 specific to fr: 0.5; general: 2.5
@pytest.mark.parametrize(
    ("layer", "pair", "specific", "general"),
    [(0, "en-de", 11, 4), (0, "de-en", 11, 4), (0, "en-fr", 10, 3.5), (1, "en-de", 0, 7.5), (1, "en-fr", 0.5, 2.5)],
)
def test_conditional_awareness_by_hand(
    small: NeuronMap, layer: int, pair: str, specific: float, general: float
) -> None:
    assert small.awareness_sums(layer, pair) == (specific, general)
    assert small.car(layer, pair) == pytest.approx(specific / (specific + general), rel=1e-12)


def test_conditional_awareness_without_any() -> None:
    assert conditional_awareness(0.0, 0.0) == 0.0
    assert conditional_awareness(1.0, 3.0) == 0.25
    assert conditional_awareness(2.0, 0.0) == 1.0


def test_detected_neurons_are_sorted_disjoint_and_complete(neuron_map: NeuronMap) -> None:
    for layer, neurons in enumerate(neuron_map.neurons):
        groups = [neuron_map.general(layer), *(neuron_map.specific(layer, code) for code in neuron_map.languages)]
        for group in groups:
            assert (group.dtype, group.dim()) == (torch.int64, 1)
            assert torch.equal(group, group.unique(sorted=True))
        assert torch.equal(torch.cat(groups).sort().values, torch.arange(len(neurons.owner)))
        for pair in neuron_map.language_pairs:
            assert 0 < neuron_map.car(layer, pair) < 1
    assert all(len(neuron_map.layers(pair)) == 2 for pair in neuron_map.language_pairs)


def test_accessors_hand_out_copies(small: NeuronMap) -> None:
    small.layers("en-de").append(7)
    small.general(0)[0] = 5
    small.language_pairs.clear()
    assert small.layers("en-de") == [0, 1]
    assert small.general(0).tolist() == [0, 3]
    assert len(small.language_pairs) == 3


@pytest.mark.parametrize(
    ("pair", "message"),
    [
        ("de-fr", "language_pair='de-fr': the neuron map holds en-de, de-en, en-fr"),
        ("fr-en", "language_pair='fr-en': the neuron map holds"),
        ("en_de", "language_pair='en_de': expected source and target"),
        (None, "language_pair=None: expected source and target"),
    ],
)
def test_unknown_pairs(small: NeuronMap, pair: Any, message: str) -> None:
    for ask in (small.layers, lambda pair: small.car(0, pair), lambda pair: small.for_pairs(["en-de", pair])):
        with pytest.raises(LanguagePairError, match=message):
            ask(pair)


@pytest.mark.parametrize("language", ["it", "EN", "", None])
def test_unknown_languages(small: NeuronMap, language: Any) -> None:
    with pytest.raises(LanguagePairError, match=r"language=.*the neuron map holds en, de, fr"):
        small.specific(0, language)


@pytest.mark.parametrize("layer", [-1, 2, 100])
def test_unknown_layers(small: NeuronMap, layer: int) -> None:
    for ask in (small.general, lambda layer: small.specific(layer, "en"), lambda layer: small.car(layer, "en-de")):
        with pytest.raises(NeuronMapError, match=rf"layer={layer}: the base model has FFN layers 0 to 1"):
            ask(layer)


def test_for_pairs(small: NeuronMap) -> None:
    assert small.for_pairs(["en-fr", "en-de"]) == [("en", "fr"), ("en", "de")]
    assert small.for_pairs(None) == [("en", "de"), ("de", "en"), ("en", "fr")]


def _assert_equal(found: NeuronMap, expected: NeuronMap) -> None:
    """Every field, whichever there are; numbers to the last bit, types as they were."""
    for entry in dataclasses.fields(NeuronMap):
        ours, theirs = getattr(found, entry.name), getattr(expected, entry.name)
        if entry.name != "neurons":
            assert (ours, type(ours)) == (theirs, type(theirs)), entry.name
            continue
        assert len(ours) == len(theirs)
        for first, second in zip(ours, theirs, strict=True):
            assert first.name == second.name
            for key in TENSORS:
                assert getattr(first, key).dtype == getattr(second, key).dtype
                assert torch.equal(getattr(first, key), getattr(second, key))
    assert [field.name for field in dataclasses.fields(LayerNeurons)] == ["name", *TENSORS]


def test_save_and_load(small: NeuronMap, tmp_path: Path) -> None:
    path = tmp_path / "new" / "folder" / "map.safetensors"
    small.save(path)
    _assert_equal(NeuronMap.load(path), small)
    assert os.listdir(path.parent) == ["map.safetensors"]


def test_save_and_load_a_detected_map(neuron_map: NeuronMap, tmp_path: Path) -> None:
    path = str(tmp_path / "map.safetensors")
    neuron_map.save(path)
    found = NeuronMap.load(path)
    _assert_equal(found, neuron_map)
    assert [found.car(2, pair) for pair in found.pair_layers] == [
        neuron_map.car(2, pair) for pair in found.pair_layers
    ]


def test_without_fingerprint(small: NeuronMap, tmp_path: Path) -> None:
    small = dataclasses.replace(small, fingerprint=None)
    small.save(tmp_path / "map.safetensors")
    assert NeuronMap.load(tmp_path / "map.safetensors").fingerprint is None


def test_order_of_pairs_survives(small: NeuronMap, tmp_path: Path) -> None:
    small.save(tmp_path / "map.safetensors")
    assert NeuronMap.load(tmp_path / "map.safetensors").language_pairs == small.language_pairs


def test_saving_again_gives_the_same_bytes(small: NeuronMap, tmp_path: Path) -> None:
    path, written = tmp_path / "map.safetensors", set()
    for _ in range(16):  # safetensors writes several metadata entries in random order
        small.save(path)
        written.add(path.read_bytes())
    NeuronMap.load(path).save(path)
    assert {path.read_bytes()} == written


def test_a_new_file_replaces_the_old(small: NeuronMap, tmp_path: Path) -> None:
    path = tmp_path / "map.safetensors"
    small.save(path)
    dataclasses.replace(small, signature="another").save(path)
    assert NeuronMap.load(path).signature == "another"


@pytest.mark.parametrize("where", ["save_file", "replace"])
def test_an_interrupted_save_leaves_the_old_file(
    small: NeuronMap, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    path = tmp_path / "map.safetensors"
    small.save(path)
    before = path.read_bytes()

    def half(_tensors: Any, target: Any, *_: Any) -> None:
        Path(target).write_bytes(before[: len(before) // 2])
        raise OSError("no space left on device")

    def refuse(*_: Any) -> None:
        raise OSError("no space left on device")

    with monkeypatch.context() as patch:
        if where == "save_file":
            patch.setattr(tensor_file, "save_file", half)
        else:
            patch.setattr(os, "replace", refuse)
        with pytest.raises(OSError, match="no space left"):
            dataclasses.replace(small, signature="another").save(path)
    assert path.read_bytes() == before
    dataclasses.replace(small, signature="a third").save(path)
    assert NeuronMap.load(path).signature == "a third"


def test_maps_can_be_compared(small: NeuronMap) -> None:
    assert dataclasses.replace(small) == small
    assert dataclasses.replace(small, width=5) != small
    first, *others = small.neurons
    changed = dataclasses.replace(first, awareness=first.awareness + 1)
    assert dataclasses.replace(small, neurons=(changed, *others)) != small
    assert first != "neurons"
