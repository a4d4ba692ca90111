"""Neuron maps from strangers: a typed error and the base as it was, or the map that the file says."""

from __future__ import annotations

import contextlib
import json
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from peft import get_peft_model
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from peft_landermt import LanderConfig, NeuronMap, detect_neurons
from peft_landermt.errors import NeuronMapError
from peft_landermt.tensor_file import digest_of

from ..conftest import PAIRS, SENTENCES, build_model, make_tokenizer
from ..tuner.helpers import ids, logits
from ..tuner.roads import assert_as_before, snapshot
from .campaign import attempt
from .mutations import Tensors, changed_json, changed_tensors, damaged

pytestmark = pytest.mark.filterwarnings("ignore")


class Maps:
    """A base, a map of it, and the map's file."""

    def __init__(self, folder: Path) -> None:
        self.base = build_model("llama")
        found = detect_neurons(
            self.base, make_tokenizer(), SENTENCES, PAIRS, num_layers=2, general_ratio=0.7, progress=False
        )
        self.path = folder / "map.safetensors"
        found.save(self.path)
        self.content = self.path.read_bytes()
        with safe_open(self.path, framework="pt") as file:
            self.header = json.loads(file.metadata()["neuron_map"])
            self.tensors = Tensors({key: file.get_tensor(key).clone() for key in file.keys()})  # noqa: SIM118

    def write(self, header: Any, tensors: Tensors, sign: str) -> None:
        """Write a file with a digest that fits, without one, or with that of before."""
        if isinstance(header, dict) and sign != "not":
            header.pop("digest", None)
            if sign == "anew":
                with contextlib.suppress(RuntimeError, TypeError):  # of types that no map has
                    header["digest"] = digest_of(header, tensors)
        save_file(tensors, self.path, {"neuron_map": json.dumps(header)})


@pytest.fixture(scope="module")
def maps(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Maps]:
    yield Maps(tmp_path_factory.mktemp("maps"))


def try_map(maps: Maps, car: str, must_be_refused: bool = False) -> None:
    """Load a map, and make an adapter of it."""
    before = snapshot(maps.base)
    found = attempt("map, NeuronMap.load", lambda: NeuronMap.load(maps.path))
    assert isinstance(found, NeuronMapError) or not isinstance(found, Exception)
    config = attempt("map, LanderConfig", lambda: LanderConfig(task_type="CAUSAL_LM", neuron_map=maps.path, car=car))
    if isinstance(found, Exception):
        assert isinstance(config, NeuronMapError)
        return
    assert not must_be_refused
    with safe_open(maps.path, framework="pt") as file:
        for index, entry in enumerate(found.neurons):
            assert entry.owner.equal(file.get_tensor(f"{index}.owner").long())
            assert entry.awareness.equal(file.get_tensor(f"{index}.awareness"))
    if isinstance(config, Exception):
        return
    model = attempt("map, get_peft_model", lambda: get_peft_model(maps.base, config))
    if isinstance(model, Exception):
        assert_as_before(maps.base, before)
        return
    pairs = config.language_pairs
    assert torch.isfinite(logits(model.eval(), ids(), language_pairs=[pairs[0]] * 3)).all()
    model.unload()
    for parameter in maps.base.parameters():
        parameter.requires_grad_(True)
    assert all(value.equal(before[-1][key]) for key, value in maps.base.state_dict().items())


cars = st.sampled_from(["off", "paper", "proportional", "token", "learned"])
signing = st.sampled_from(["anew", "anew", "anew", "none", "not"])


@given(data=st.data(), sign=signing, car=cars)
def test_changed_headers(maps: Maps, data: st.DataObject, sign: str, car: str) -> None:
    changed = data.draw(changed_json(maps.header))
    try:
        maps.write(changed, maps.tensors, sign)
    except (UnicodeEncodeError, SafetensorError):
        return
    try_map(maps, car, must_be_refused=sign == "not" and changed.get("digest") and changed != maps.header)


@given(data=st.data(), sign=signing, car=cars)
def test_changed_tensors(maps: Maps, data: st.DataObject, sign: str, car: str) -> None:
    others = ["9.owner", "0.owner", "1.awareness", "-1.owner", "", "0.", "é\x1b[2J"]
    changed = data.draw(changed_tensors(maps.tensors, others))
    same = changed.keys() == maps.tensors.keys() and all(
        value.dtype == maps.tensors[key].dtype and value.equal(maps.tensors[key]) for key, value in changed.items()
    )
    maps.write(dict(maps.header), changed, sign)
    try_map(maps, car, must_be_refused=sign == "not" and not same)


@given(data=st.data(), car=cars)
def test_damaged_bytes(maps: Maps, data: st.DataObject, car: str) -> None:
    content = data.draw(damaged(maps.content) | st.binary(max_size=64))
    maps.path.write_bytes(content)
    try_map(maps, car)


@given(text=st.text(max_size=30) | damaged(b'{"format": "1"}').map(lambda data: data.decode("latin-1")))
def test_any_header_text(maps: Maps, text: str) -> None:
    with warnings.catch_warnings():
        try:
            save_file(maps.tensors, maps.path, {"neuron_map": text})
        except (UnicodeEncodeError, SafetensorError):
            return
    try_map(maps, "off", must_be_refused=True)
