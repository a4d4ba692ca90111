"""Files of neuron maps from strangers: damaged, changed, or made to mislead; and maps made by hand."""

from __future__ import annotations

import copy
import dataclasses
import json
import os
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import get_peft_model
from safetensors import safe_open
from safetensors.torch import save_file
from transformers import PreTrainedModel

from peft_landermt import LanderConfig, NeuronMap
from peft_landermt.errors import LanderError, NeuronMapError
from peft_landermt.tensor_file import digest_of

from .tuner.helpers import cloned_state, same_state

Header = dict[str, Any]
Tensors = dict[str, torch.Tensor]


@pytest.fixture
def architecture() -> str:
    return "llama"


@pytest.fixture
def saved(neuron_map: NeuronMap, tmp_path: Path) -> Path:
    neuron_map.save(tmp_path / "map.safetensors")
    return tmp_path / "map.safetensors"


def read(path: Path) -> tuple[Header, Tensors]:
    with safe_open(path, framework="pt") as file:
        header = json.loads(file.metadata()["neuron_map"])
        return header, {key: file.get_tensor(key).clone() for key in file.keys()}  # noqa: SIM118  not a dict


def write(path: Path, header: Any, tensors: Tensors, sign: bool = True) -> None:
    """A file with a digest that fits, as whoever makes one on purpose writes it."""
    if sign and isinstance(header, dict):
        header = {key: value for key, value in header.items() if key != "digest"}
        header["digest"] = digest_of(header, tensors)
    save_file(tensors, path, {"neuron_map": json.dumps(header)})


def refused(path: Path, base: PreTrainedModel, shown: str = "") -> None:
    """Loading it, by itself or for an adapter, is a typed error of one line; the base is as before."""
    before = cloned_state(base)
    with pytest.raises(NeuronMapError, match=shown) as caught:
        NeuronMap.load(path)
    with pytest.raises(NeuronMapError):
        get_peft_model(base, LanderConfig(task_type="CAUSAL_LM", neuron_map=str(path), language_pairs=["en-de"]))
    assert caught.value.field == "path" and path.name in str(caught.value)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 900
    assert same_state(cloned_state(base), before)


# Damage


@pytest.mark.parametrize("kept", [0.0, 0.001, 0.1, 0.5, 0.9, 0.999])
def test_truncated_file(saved: Path, base: PreTrainedModel, kept: float) -> None:
    whole = saved.read_bytes()
    saved.write_bytes(whole[: int(kept * len(whole))])
    refused(saved, base, r"path='.*map\.safetensors': the file is damaged")


@pytest.mark.parametrize("content", [b"garbage " * 100, b"{}", b"\x00" * 64], ids=["text", "json", "zeros"])
def test_garbage(saved: Path, base: PreTrainedModel, content: bytes) -> None:
    saved.write_bytes(content)
    refused(saved, base, "the file is damaged")


def test_another_safetensors_file(tmp_path: Path, base: PreTrainedModel) -> None:
    path = tmp_path / "adapter_model.safetensors"
    save_file({"weight": torch.ones(2)}, path)
    refused(path, base, "expected a neuron map of format 1")


@pytest.mark.parametrize("name", ["absent.safetensors", ".", "pipe"])
def test_no_file(tmp_path: Path, base: PreTrainedModel, name: str) -> None:
    os.mkfifo(tmp_path / "pipe")
    refused(tmp_path / name, base, "there is no such file; make one with detect_neurons")


def test_a_file_that_may_not_be_read(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_arguments: Any, **_options: Any) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("peft_landermt.tensor_file.safe_open", refuse)
    with pytest.raises(NeuronMapError, match=r"cannot be read: .*Permission denied"):
        NeuronMap.load(saved)


# Headers


def with_field(field: str, value: Any) -> Callable[[Header], Any]:
    return lambda header: {**header, field: value}


def without(field: str) -> Callable[[Header], Any]:
    return lambda header: {key: value for key, value in header.items() if key != field}


FIELDS = ("languages", "pair_layers", "layer_changes", "names", "width", "fingerprint", "signature", "options")
OTHER_TYPES = (7, -1, 1.5, True, None, "en-de", ["x"], [["x"]], {"x": 1}, {"en-de": 0}, {"en-de": [None]}, [])
MAY_BE_NONE = {("fingerprint", "None")}
HEADERS: dict[str, Callable[[Header], Any]] = {
    **{f"no {field}": without(field) for field in FIELDS},
    **{
        f"{field}: {value!r}": with_field(field, value)
        for field in FIELDS
        for value in OTHER_TYPES
        if (field, repr(value)) not in MAY_BE_NONE and (field, value) not in (("signature", "en-de"), ("width", 7))
        and not (field == "options" and isinstance(value, dict))
    },
    "a list": lambda header: [header],
    "a number": lambda header: 5,
    "a field too many": with_field("shape", 1),
    "a newer format": with_field("format", "2"),
    "a layer too many": lambda header: {**header, "names": [*header["names"], "more"]},
    "a layer too few": lambda header: {**header, "names": header["names"][:-1]},
    "one name twice": lambda header: {**header, "names": [header["names"][0]] * len(header["names"])},
    "a name with a line end": lambda header: {**header, "names": [f"{name}\n" for name in header["names"]]},
    **{
        f"layers {layers}": lambda header, layers=layers: {
            **header, "pair_layers": {**header["pair_layers"], "en-de": layers}
        }
        for layers in ([99], [-1], ["0"], [], [0.0], [True, 2], [2, 1], [1, 1], [None], [[0]], [2**70])
    },
    **{
        f"changes {changes}": lambda header, changes=changes: {
            **header, "layer_changes": {**header["layer_changes"], "en-de": changes}
        }
        for changes in ([], [0.1], [0.1] * 9, [-0.1] * 3, ["0.1"] * 3, [True] * 3, [None] * 3, [1e400] * 3, [[]] * 3)
    },
    "no pairs": lambda header: {**header, "pair_layers": {}, "layer_changes": {}},
    "another language": lambda header: {**header, "pair_layers": {"en-it": [0]}, "layer_changes": {"en-it": [1] * 3}},
    "a language twice": with_field("languages", ["en", "en", "de"]),
    "no such language code": with_field("languages", ["en", "de", "../../etc"]),
    "a pair of one language": lambda header: {**header, "pair_layers": {**header["pair_layers"], "en-en": [0]}},
    "a language too many": lambda header: {**header, "languages": [*header["languages"], "it"]},
    "no fingerprint of ours": with_field("fingerprint", "0x"),
    "a signature that moves the cursor": with_field("signature", "base\x1b[2J"),
    "a signature of two lines": with_field("signature", "base\nother"),
    "half of a surrogate pair": with_field("signature", "\ud800"),
    "a signature that hides": with_field("signature", "base\u202e"),
    "a signature of a megabyte": with_field("signature", "x" * 1_000_000),
    "a layout that is none": with_field("options", {"ffn_layout": {"inputs": 3}}),
    "an option that is NaN": with_field("options", {"general_ratio": float("nan")}),
}  # fmt: skip


@pytest.mark.parametrize("change", HEADERS.values(), ids=HEADERS)
def test_header(saved: Path, base: PreTrainedModel, change: Callable[[Header], Any]) -> None:
    header, tensors = read(saved)
    write(saved, change(header), tensors)
    refused(saved, base, "the file is damaged, or no neuron map")


TEXTS = {
    "cut": '{"format": "1", "languages": ["en',
    "deep": "[" * 100_000,
    "deep object": '{"format":"1","options":' + '{"a":' * 500 + "1" + "}" * 501,
    "many digits": '{"format": ' + "9" * 5000 + "}",
    "a key twice": '{"format": "1", "format": "1"}',
    "empty": "",
    "infinity": "Infinity",
}


@pytest.mark.parametrize("text", TEXTS.values(), ids=TEXTS)
def test_header_that_is_no_json_of_ours(saved: Path, base: PreTrainedModel, text: str) -> None:
    save_file(read(saved)[1], saved, {"neuron_map": text})
    refused(saved, base, "the file is damaged, or no neuron map")


# Tensors

TYPES = (torch.float64, torch.float16, torch.bfloat16, torch.int64, torch.uint8, torch.bool, torch.float8_e4m3fn)
STATISTICS = ("awareness", "mean_gradient", "mean_abs_activation")
TENSORS: dict[str, tuple[str, Callable[[torch.Tensor], torch.Tensor | None]]] = {
    "owner: above the languages": ("owner", lambda owner: owner + 7),
    "owner: below general": ("owner", lambda owner: owner - 7),
    "owner: too short": ("owner", lambda owner: owner[:-1].clone()),
    "owner: too long": ("owner", lambda owner: torch.cat([owner, owner[:1]])),
    "owner: a column": ("owner", lambda owner: owner.unsqueeze(1)),
    "owner: empty": ("owner", lambda owner: owner[:0].clone()),
    "owner: a scalar": ("owner", lambda owner: owner[0].clone()),
    "owner: missing": ("owner", lambda owner: None),
    **{f"owner: {kind}": ("owner", lambda owner, kind=kind: owner.to(kind)) for kind in (*TYPES, torch.float32)},
    **{
        f"{name}: {what}": (name, change)
        for name in STATISTICS
        for what, change in {
            "NaN": lambda values: torch.where(values == values[0, 0], torch.nan, values),
            "infinite": lambda values: values + torch.inf,
            "beyond any model": lambda values: values + 1e30,
            "a neuron too few": lambda values: values[:, :-1].clone(),
            "a language too few": lambda values: values[:-1].clone(),
            "transposed": lambda values: values.T.contiguous(),
            "flat": lambda values: values.flatten(),
            "a scalar": lambda values: values[0, 0].clone(),
            "empty": lambda values: values[:, :0].clone(),
            "missing": lambda values: None,
            **{str(kind): lambda values, kind=kind: values.to(kind) for kind in (*TYPES, torch.int32)},
        }.items()
    },
    "awareness: negative": ("awareness", lambda values: -values - 1),
    "mean_abs_activation: negative": ("mean_abs_activation", lambda values: -values - 1),
}  # fmt: skip


@pytest.mark.parametrize(("name", "change"), TENSORS.values(), ids=TENSORS)
def test_tensor(
    saved: Path, base: PreTrainedModel, name: str, change: Callable[[torch.Tensor], torch.Tensor | None]
) -> None:
    header, tensors = read(saved)
    changed = {**tensors, f"1.{name}": change(tensors[f"1.{name}"])}
    kept = {key: value for key, value in changed.items() if value is not None}
    header["digest"] = "0" * 64  # float8 has no digest; what is wrong is told all the same
    write(saved, header, kept, sign=False)
    refused(saved, base, "the file is damaged, or no neuron map")


def test_a_tensor_too_many(saved: Path, base: PreTrainedModel) -> None:
    header, tensors = read(saved)
    write(saved, header, {**tensors, "4.owner": tensors["0.owner"].clone()})
    refused(saved, base, "it has not the tensors of its header: '4.owner'")


# The digest


def test_a_file_that_was_changed(saved: Path, base: PreTrainedModel, neuron_map: NeuronMap) -> None:
    """What no other check can tell: another number, another order of pairs, another layer."""
    header, tensors = read(saved)
    others = {key: value.clone() for key, value in tensors.items()}
    others["1.awareness"][0, 0] *= 1.5
    pairs = dict(reversed(header["pair_layers"].items()))
    for path, changed, values in (
        (saved.with_name("number"), header, others),
        (saved.with_name("order"), {**header, "pair_layers": pairs}, tensors),
        (saved.with_name("width"), {**header, "width": header["width"] + 1}, tensors),
    ):
        write(path, changed, values, sign=False)
        refused(path, base, r"was changed after it was written.* NeuronMap.load\(path, verify=False\) reads it")
        assert NeuronMap.load(path, verify=False) != neuron_map or path.name == "order"
    text = json.dumps(header, indent=3)
    save_file(tensors, saved, {"neuron_map": text, "format": "pt"})
    assert NeuronMap.load(saved) == neuron_map, "white space, and what other tools add, change nothing"


def test_a_file_of_an_earlier_version_has_no_digest(saved: Path, neuron_map: NeuronMap) -> None:
    header, tensors = read(saved)
    write(saved, without("digest")(header), tensors, sign=False)
    with pytest.warns(UserWarning, match="has no digest"):
        assert NeuronMap.load(saved) == neuron_map
    neuron_map.save(saved)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert NeuronMap.load(saved) == neuron_map


def test_a_map_does_not_change_with_its_file(saved: Path, neuron_map: NeuronMap) -> None:
    found = NeuronMap.load(saved)
    with saved.open("r+b") as file:
        file.write(bytes(saved.stat().st_size))
    assert found == neuron_map


# Maps made by hand, and adapters


def changed_layer(neuron_map: NeuronMap, **tensors: Any) -> dict[str, Any]:
    first, *others = neuron_map.neurons
    return {"neurons": (dataclasses.replace(first, **tensors), *others)}


BY_HAND: dict[str, Callable[[NeuronMap], dict[str, Any]]] = {
    "owner": lambda found: changed_layer(found, owner=found.neurons[0].owner + 9),
    "awareness": lambda found: changed_layer(found, awareness=found.neurons[0].awareness * torch.nan),
    "mean_gradient": lambda found: changed_layer(found, mean_gradient=torch.zeros(3)),
    "names": lambda found: changed_layer(found, name=found.neurons[1].name),
    "width": lambda found: {"width": 0},
    "pairs": lambda found: {"pair_layers": {"en-it": (0,)}},
    "layers": lambda found: {"pair_layers": {**found.pair_layers, "en-de": (9,)}},
    "languages": lambda found: {"languages": ("en", "en", "de")},
    "fingerprint": lambda found: {"fingerprint": 3},
    "options": lambda found: {"options": {"ffn_layout": "mlp"}},
}


@pytest.mark.parametrize("change", BY_HAND.values(), ids=BY_HAND)
def test_a_map_that_contradicts_itself_cannot_be_made(
    neuron_map: NeuronMap, change: Callable[[NeuronMap], dict[str, Any]]
) -> None:
    with pytest.raises(NeuronMapError):
        dataclasses.replace(neuron_map, **change(neuron_map))


def test_numbers_of_other_types_are_converted(neuron_map: NeuronMap) -> None:
    first = neuron_map.neurons[0]
    values = {name: getattr(first, name).double() for name in STATISTICS}
    assert dataclasses.replace(first, owner=first.owner.short(), **values) == first


@pytest.mark.parametrize("field", ["owner", *STATISTICS])
def test_extreme_maps_give_adapters_that_save_and_load(
    base: PreTrainedModel, neuron_map: NeuronMap, tmp_path: Path, field: str
) -> None:
    """The largest and smallest numbers that a map may have; an adapter made of it can be loaded again."""
    for value in (-1, 2) if field == "owner" else (1e15, 0.0):
        neurons = tuple(
            dataclasses.replace(layer, **{field: torch.full_like(getattr(layer, field), value)})
            for layer in neuron_map.neurons
        )
        extreme = dataclasses.replace(neuron_map, neurons=neurons)
        for car in ("paper", "proportional", "token", "learned"):
            model = copy.deepcopy(base)
            config = LanderConfig(task_type="CAUSAL_LM", neuron_map=extreme, language_pairs=["en-de"], car=car)
            try:
                adapted = get_peft_model(model, config)
            except LanderError:
                assert same_state(cloned_state(model), cloned_state(base))
                continue
            folder = tmp_path / f"{value}-{car}"
            adapted.save_pretrained(str(folder))
            assert LanderConfig.from_pretrained(str(folder)).neuron_map_signature == neuron_map.signature
