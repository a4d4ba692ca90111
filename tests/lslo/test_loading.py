"""Loading is all or nothing on every road, as for LANDER: what is refused leaves everything bit for bit."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from peft_landermt import join_adapters
from peft_landermt.errors import LanderError

from ..tuner.helpers import ids, logits
from ..tuner.roads import assert_as_before, by_transformers, first, hotswap, over_itself, second, snapshot
from ..tuner.test_loading import (
    SAVED,
    WEIGHTS,
    a_block,
    change_config,
    change_tensors,
    flip_a_byte,
    replace_by_a_pickle,
)
from .helpers import adapt, build, make_config

PAIRS = ["en-de", "de-en"]


def make(kind: str) -> nn.Module:
    base = build("llama")
    if kind == "plain":
        return base
    model = adapt(
        base, ["en-fr"] if kind == "another" else PAIRS, seed=7, index="learned", modules_to_save=["lm_head"]
    )
    if kind == "of the form":
        model.add_adapter("good", make_config(base, ["en-fr"], modules_to_save=["lm_head"]))
    return model


ROADS: dict[str, tuple[str, Callable[[Any, Path], Any]]] = {
    "from_pretrained": ("plain", first),
    "load_adapter": ("another", second),
    "load_adapter, a loaded name": ("of the form", over_itself),
    "hotswap_adapter": ("of the form", hotswap),
    "transformers": ("plain", by_transformers),
    "join_adapters": ("plain", lambda model, folder: join_adapters(model, [folder])),
}

DAMAGES: dict[str, Callable[[Path], Any]] = {
    "a weight of the base": change_tensors(
        lambda s: s.update({"base_model.model.model.embed_tokens.weight": torch.zeros(114, 32)})
    ),
    "a weight of an adapted layer": change_tensors(
        lambda s: s.update({"base_model.model.model.layers.0.mlp.up_proj.base_layer.weight": torch.zeros(1)})
    ),
    "a saved module is missing": change_tensors(lambda s: s.pop(SAVED)),
    "a saved module that is NaN": change_tensors(lambda s: s[SAVED].fill_(float("nan"))),
    "a factor that is infinite": change_tensors(lambda s: s[a_block(s, "_B")].view(-1)[:1].fill_(float("inf"))),
    "a factor beyond half precision": change_tensors(lambda s: s[a_block(s, "_B")].view(-1)[:1].fill_(1e30)),
    "a factor is missing": change_tensors(lambda s: s.pop(a_block(s, "en_A"))),
    "a factor of another rank": change_tensors(lambda s: s.update({(k := a_block(s, "_A")): s[k][:1].clone()})),
    "a factor of another type": change_tensors(lambda s: s.update({(k := a_block(s, "_B")): s[k].long()})),
    "another language's factor": change_tensors(
        lambda s: s.update({a_block(s, "en_A").replace("en_A", "fr_A"): torch.zeros(2, 32)})
    ),
    "no index": change_tensors(lambda s: s.pop(a_block(s, "index_logits"))),
    "an index of three sides": change_tensors(lambda s: s.update({a_block(s, "index_logits"): torch.zeros(3)})),
    "an index that is NaN": change_tensors(lambda s: s[a_block(s, "index_logits")].fill_(float("nan"))),
    "a flipped byte": flip_a_byte,
    "a config changed by hand": change_config(dropout=0.5),
    "a config of another form": change_config(index=["target"] * 4),
    "a config of another rank": change_config(rank=3),
    "no weights": lambda folder: (folder / WEIGHTS).unlink(),
    "a pipe": lambda folder: ((folder / WEIGHTS).unlink(), os.mkfifo(folder / WEIGHTS)),
    "half of the weights": lambda folder: (folder / WEIGHTS).write_bytes((folder / WEIGHTS).read_bytes()[:2000]),
    "a pickle": replace_by_a_pickle,
}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("whole")
    adapt(build("llama"), PAIRS, index="learned", modules_to_save=["lm_head"]).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def models() -> dict[str, nn.Module]:
    """The model of every road; each test leaves it as it was, or fails."""
    return {road: make(kind) for road, (kind, _) in ROADS.items()}


QUICK = ("from_pretrained",)


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize(
    "road", [each if each in QUICK else pytest.param(each, marks=pytest.mark.slow) for each in ROADS]
)
@pytest.mark.parametrize("damage", DAMAGES)
def test_damage_is_refused_before_anything_changes(
    whole: Path, models: dict[str, nn.Module], damage: str, road: str, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(whole, tmp_path / "adapter"))
    DAMAGES[damage](folder)
    before = snapshot(models[road])
    with pytest.raises(LanderError):
        ROADS[road][1](models[road], folder)
    assert_as_before(models[road], before)


@pytest.mark.parametrize("road", ["load_adapter", "load_adapter, a loaded name", "hotswap_adapter"])
def test_what_is_whole_is_loaded(whole: Path, road: str) -> None:
    kind, load = ROADS[road]
    model: Any = make(kind)
    load(model, whole)
    model.set_adapter("second" if road == "load_adapter" else "default")
    expected = first(build("llama"), whole).eval()
    routed = {"language_pairs": ["en-de", "de-en", "en-de"]}
    assert logits(model.eval(), ids(), **routed).equal(logits(expected, ids(), **routed))
