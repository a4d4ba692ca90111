"""Loading is all or nothing on every road: what is refused leaves model, configs and other adapters bit for bit."""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from peft import AutoPeftModelForCausalLM, PeftModel, set_peft_model_state_dict
from peft.utils import load_peft_weights
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import AutoModelForCausalLM, PreTrainedModel

import peft_landermt.routed.folder as folder_module
from peft_landermt import LanderFFN, NeuronMap, join_adapters
from peft_landermt.errors import AdapterError, LanderError

from ..conftest import build_model
from ..versions import EARLY_TRANSFORMERS_5
from .helpers import adapt, ids, logits, make_config
from .roads import ROADS, assert_as_before, snapshot, with_another, with_one_of_the_form

WEIGHTS, CONFIG = "adapter_model.safetensors", "adapter_config.json"
SAVED = "base_model.model.lm_head.weight"


@pytest.fixture
def architecture() -> str:
    return "llama"


@pytest.fixture(scope="module")
def llama_map(_bases: Callable[[str], tuple[PreTrainedModel, NeuronMap]]) -> NeuronMap:
    return _bases("llama")[1]


@pytest.fixture(scope="module")
def whole(llama_map: NeuronMap, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An adapter with a saved module, beside the base that its config names."""
    folder = tmp_path_factory.mktemp("whole")
    base = build_model("llama")
    base.save_pretrained(folder / "base")
    base.name_or_path = base.config._name_or_path = str(folder / "base")
    adapt(base, llama_map, ["en-de"], seed=1, modules_to_save=["lm_head"]).save_pretrained(folder / "adapter")
    return folder / "adapter"


@pytest.fixture
def folder(whole: Path, tmp_path: Path) -> Path:
    """A copy of the adapter, to be damaged."""
    return Path(shutil.copytree(whole, tmp_path / "adapter"))


def change_tensors(change: Callable[[dict[str, torch.Tensor]], Any]) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        state = load_file(folder / WEIGHTS)
        change(state)
        save_file(state, folder / WEIGHTS)

    return damage


def a_block(state: dict[str, torch.Tensor], ending: str) -> str:
    return next(key for key in state if key.endswith(ending))


def flip_a_byte(folder: Path) -> None:
    content = bytearray((folder / WEIGHTS).read_bytes())
    content[-2] ^= 1
    (folder / WEIGHTS).write_bytes(content)


def change_config(**fields: Any) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        (folder / CONFIG).write_text(json.dumps({**json.loads((folder / CONFIG).read_text()), **fields}))

    return damage


def replace_by_a_pickle(folder: Path) -> None:
    torch.save(load_file(folder / WEIGHTS), folder / "adapter_model.bin")
    (folder / WEIGHTS).unlink()


DAMAGES: dict[str, Callable[[Path], None]] = {
    "a weight of the base": change_tensors(
        lambda s: s.update({"base_model.model.model.embed_tokens.weight": torch.zeros(116, 32)})
    ),
    "a weight of an adapted FFN": change_tensors(
        lambda s: s.update(
            {"base_model.model.model.layers.0.mlp.base_layer.up_proj.base_layer.weight": torch.zeros(1)}
        )
    ),
    "another adapter's saved module": change_tensors(
        lambda s: s.update({"base_model.model.lm_head.modules_to_save.good.weight": s[SAVED].clone()})
    ),
    "a saved module is missing": change_tensors(lambda s: s.pop(SAVED)),
    "a saved module of another shape": change_tensors(lambda s: s.update({SAVED: torch.zeros(3, 3)})),
    "a saved module of another type": change_tensors(lambda s: s.update({SAVED: s[SAVED].long()})),
    "a saved module that is NaN": change_tensors(lambda s: s[SAVED].fill_(float("nan"))),
    "a delta that is infinite": change_tensors(lambda s: s[a_block(s, "_B")].view(-1)[:1].fill_(float("inf"))),
    "a delta is missing": change_tensors(lambda s: s.pop(a_block(s, "_A"))),
    "a delta of another shape": change_tensors(lambda s: s.update({(k := a_block(s, "_A")): s[k][:1].clone()})),
    "neurons out of order": change_tensors(lambda s: s.update({(k := a_block(s, "general_neurons")): s[k].flip(0)})),
    "neurons out of range": change_tensors(lambda s: s[a_block(s, "general_neurons")][-1:].fill_(10_000)),
    "a neuron twice": change_tensors(lambda s: s[a_block(s, "general_neurons")][:2].fill_(0)),
    "a delta beyond half precision": change_tensors(lambda s: s[a_block(s, "_B")].view(-1)[:1].fill_(1e30)),
    "a delta of eight bits": change_tensors(lambda s: s.update({(k := a_block(s, "_B")): s[k].to(torch.float8_e5m2)})),
    "neurons of another type": change_tensors(lambda s: s.update({(k := a_block(s, "de_neurons")): s[k].long()})),
    "awareness below zero": change_tensors(lambda s: s[a_block(s, "awareness_sums")].view(-1)[:1].fill_(-1)),
    "a number of 400 digits": change_config(general_rank=10**400),
    "a pattern that nests too deep": change_config(target_modules="(?:" * 5000 + "a" + ")" * 5000),
    "a pipe": lambda folder: ((folder / WEIGHTS).unlink(), os.mkfifo(folder / WEIGHTS)),
    "a flipped byte": flip_a_byte,
    "a config changed by hand": change_config(init_weights=False),
    "a config of another form": change_config(car="learned"),
    "no weights": lambda folder: (folder / WEIGHTS).unlink(),
    "a link to nowhere": lambda folder: ((folder / WEIGHTS).unlink(), (folder / WEIGHTS).symlink_to("/nowhere")),
    "half of the weights": lambda folder: (folder / WEIGHTS).write_bytes((folder / WEIGHTS).read_bytes()[:2000]),
    "a pickle": replace_by_a_pickle,
}


@pytest.fixture(scope="module")
def models(llama_map: NeuronMap) -> dict[str, nn.Module]:
    """The model of every road; each test leaves it as it was, or fails."""
    made = {road: make(llama_map) for road, (make, _) in ROADS.items()}
    for model in made.values():
        next(iter(model.parameters())).requires_grad_(False)
    return made


@pytest.mark.parametrize("road", ROADS)
@pytest.mark.parametrize("damage", DAMAGES)
def test_damage_is_refused_before_anything_changes(
    folder: Path, models: dict[str, nn.Module], damage: str, road: str
) -> None:
    DAMAGES[damage](folder)
    before = snapshot(models[road])
    with pytest.raises(LanderError):
        ROADS[road][1](models[road], folder)
    assert_as_before(models[road], before)


@pytest.mark.parametrize("road", ROADS)
def test_what_is_whole_is_loaded(whole: Path, neuron_map: NeuronMap, road: str) -> None:
    if road == "transformers" and EARLY_TRANSFORMERS_5:
        pytest.skip("it leaves modules_to_save of any adapter as they were, and reports them as missing")
    make, load = ROADS[road]
    model = make(neuron_map)
    model = load(model, whole) if road == "from_pretrained" else (load(model, whole), model)[1]
    name = "second" if road == "load_adapter" else "default"
    model.set_adapter(name)
    expected = PeftModel.from_pretrained(build_model("llama"), str(whole)).eval()
    assert logits(model.eval(), ids()).equal(logits(expected, ids()))


@pytest.mark.parametrize("damage", [flip_a_byte, change_config(init_weights=False)], ids=["byte", "config"])
def test_a_folder_that_changed_since_it_was_loaded(folder: Path, llama_map: NeuronMap, damage: Any) -> None:
    model = PeftModel.from_pretrained(build_model("llama"), str(folder))
    model.load_adapter(str(folder), adapter_name="second")
    before = snapshot(model)
    damage(folder)
    for name in ("default", "second"):
        with pytest.raises(AdapterError, match=r"digest=|neuron indices"):
            model.load_adapter(str(folder), adapter_name=name)
        assert_as_before(model, before)
    with pytest.raises(AdapterError, match=r"digest=|neuron indices"):
        join_adapters(build_model("llama"), [folder])


def read_by_us(monkeypatch: pytest.MonkeyPatch, before: Callable[[], Any]) -> None:
    load = folder_module.load_file
    monkeypatch.setattr(folder_module, "load_file", lambda path: (before(), load(path))[1])


def read_by_peft(monkeypatch: pytest.MonkeyPatch, before: Callable[[], Any]) -> None:
    load = peft.peft_model.load_peft_weights
    monkeypatch.setattr(
        peft.peft_model, "load_peft_weights", lambda *args, **kwargs: (before(), load(*args, **kwargs))[1]
    )


def join(model: nn.Module, folder: Path) -> Any:
    return join_adapters(model, [folder])


@pytest.mark.parametrize(
    ("road", "moment"),
    [(road, read_by_us) for road in ("join_adapters", *ROADS)]
    + [(road, read_by_peft) for road in ("from_pretrained", "load_adapter", "load_adapter, a loaded name")],
)
def test_a_folder_that_is_saved_to_while_it_is_loaded(
    folder: Path, llama_map: NeuronMap, monkeypatch: pytest.MonkeyPatch, road: str, moment: Any
) -> None:
    """Config and weights of two saves of one form, each of which fits its digest."""
    later = adapt(build_model("llama"), llama_map, ["en-de"], seed=2, modules_to_save=["lm_head"])
    later.peft_config["default"].base_model_name_or_path = json.loads((folder / CONFIG).read_text())[
        "base_model_name_or_path"
    ]
    make, load = {"join_adapters": (ROADS["from_pretrained"][0], join), **ROADS}[road]
    model = make(llama_map)
    before = snapshot(model)
    moment(monkeypatch, lambda: later.save_pretrained(str(folder)))
    with pytest.raises(AdapterError, match="while it was being loaded"):
        load(model, folder)
    if moment is read_by_us or "loaded name" in road:
        assert_as_before(model, before)
    for name, value in build_model("llama").state_dict().items():
        found = {
            key.replace("base_model.model.", "").replace(".base_layer", "").replace(".original_module", ""): key
            for key in model.state_dict()
            if ".default" not in key and ".good" not in key
        }
        assert model.state_dict()[found[name]].equal(value)


@pytest.mark.parametrize("auto", [AutoPeftModelForCausalLM, AutoModelForCausalLM])
@pytest.mark.parametrize("damage", list(DAMAGES)[::3])
def test_auto_classes_refuse_damage(folder: Path, damage: str, auto: Any) -> None:
    DAMAGES[damage](folder)
    with pytest.raises(LanderError):
        auto.from_pretrained(str(folder))


def test_a_state_dict_that_does_not_fit(whole: Path, neuron_map: NeuronMap) -> None:
    """Saved modules are PEFT's: it looks for their keys itself, before anything is written."""
    model = with_one_of_the_form(neuron_map)
    before = snapshot(model)
    state = load_peft_weights(str(whole), device="cpu")
    for damage in [name for name in DAMAGES if name[:5] in ("a del", "neuro", "a neu", "a wei", "anoth", "a sav")]:
        change = {key: value.clone() for key, value in state.items()}
        DAMAGES[damage].__closure__[0].cell_contents(change)  # type: ignore[index]
        with pytest.raises((AdapterError, KeyError)):
            set_peft_model_state_dict(model, change)
        assert_as_before(model, before)
    set_peft_model_state_dict(model, state)
    expected = PeftModel.from_pretrained(build_model("llama"), str(whole)).eval()
    assert logits(model.eval(), ids()).equal(logits(expected, ids()))


# Embeddings that were resized travel with the adapter


@pytest.fixture
def resized(tmp_path: Path) -> Path:
    """An adapter of a base with more tokens than on disk."""
    build_model("llama").save_pretrained(tmp_path / "base")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    model.resize_token_embeddings(130, mean_resizing=False)
    with pytest.warns(UserWarning, match="embedding layer has been resized"):
        adapt(model.eval(), language_pairs=["en-de"]).save_pretrained(tmp_path / "adapter")
    return tmp_path / "adapter"


def test_resized_embeddings_fit_a_base_of_their_size(resized: Path) -> None:
    small = build_model("llama")
    before = snapshot(small)
    with pytest.raises(AdapterError, match=r"weight=\(130, 32\): expected shape \(114, 32\)"):
        PeftModel.from_pretrained(small, str(resized))
    assert_as_before(small, before)
    large = AutoModelForCausalLM.from_pretrained(resized.parent / "base")
    large.resize_token_embeddings(130, mean_resizing=False)
    loaded = PeftModel.from_pretrained(large, str(resized))
    state = load_file(resized / WEIGHTS)
    assert loaded.get_input_embeddings().weight.equal(state["base_model.model.model.embed_tokens.weight"])


def test_embeddings_do_not_change_under_other_adapters(resized: Path) -> None:
    large = AutoModelForCausalLM.from_pretrained(resized.parent / "base")
    large.resize_token_embeddings(130, mean_resizing=False)
    with torch.no_grad():
        large.get_input_embeddings().weight[-1] += 1
    model = adapt(large, language_pairs=["en-de"], adapter_name="good")
    before = snapshot(model)
    with pytest.raises(AdapterError, match="would change the base under the adapters that are loaded"):
        model.load_adapter(str(resized), adapter_name="second")
    assert_as_before(model, before)


def test_embeddings_that_the_config_does_not_name(resized: Path) -> None:
    change_config(embedding_layers=None, digest=None)(resized)
    large = AutoModelForCausalLM.from_pretrained(resized.parent / "base")
    large.resize_token_embeddings(130, mean_resizing=False)
    with pytest.raises(AdapterError, match="which are not the adapter's"):
        PeftModel.from_pretrained(large, str(resized))
    assert not any(isinstance(module, LanderFFN) for module in large.modules())


# Names and modules that are refused when an adapter is added


@pytest.mark.parametrize(
    "name",
    [
        "model",
        "weight",
        "lm_head",
        "base_model",
        "embed_tokens",
        "bias",
        "a.b",
        "",
        "keys",
        "to",
        "training",
        "a\x1b[2J",
        "\ud800",
        "__base__",
        "/tmp/a",
        "..\\a",
        "é" * 101,
    ],
)
def test_names_that_peft_would_take_for_parts_of_keys(neuron_map: NeuronMap, name: str) -> None:
    model = with_another(neuron_map)
    before = snapshot(model)
    with pytest.raises(AdapterError, match="adapter_name="):
        model.add_adapter(name, make_config(neuron_map, ["en-de"]))
    assert_as_before(model, before)


@pytest.mark.parametrize("name", ["de", "en-de", "1", "mlp", "lander", "layers", "an adapter"])
def test_other_names_save_and_load(neuron_map: NeuronMap, tmp_path: Path, name: str) -> None:
    model = with_another(neuron_map)
    model.add_adapter(name, make_config(neuron_map, ["en-de"]))
    model.save_pretrained(str(tmp_path))
    fresh = PeftModel.from_pretrained(build_model("llama"), str(tmp_path / "good"), adapter_name="good")
    fresh.load_adapter(str(tmp_path / name), adapter_name=name)
    for each in ("good", name):
        model.set_adapter(each)
        fresh.set_adapter(each)
        assert logits(fresh.eval(), ids()).equal(logits(model.eval(), ids()))


@pytest.mark.parametrize("saved", ["mlp", "gate_proj", "layers", "layers.0", "nowhere"])
def test_modules_that_cannot_be_saved_beside_the_adapter(neuron_map: NeuronMap, saved: str) -> None:
    model = build_model("llama")
    before = snapshot(model)
    with pytest.raises(LanderError, match="modules_to_save="):
        adapt(model, neuron_map, ["en-de"], modules_to_save=[saved])
    assert_as_before(model, before)


@pytest.mark.parametrize("pattern", [".*" * 300 + "!", "(.*)*" * 20 + "x", "(([a-z0-9_.]+)+)+!"])
@pytest.mark.parametrize("field", ["target_modules", "exclude_modules"])
def test_patterns_have_little_time(pattern: str, field: str) -> None:
    """In this package and in PEFT, which matches them against names of embeddings."""
    model = build_model("llama")
    before, start = snapshot(model), time.perf_counter()
    try:
        adapt(model, **{field: pattern})
    except ValueError:  # PEFT's too, for a pattern that matches nothing
        assert_as_before(model, before)
    assert time.perf_counter() - start < 30
