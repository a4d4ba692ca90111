"""Adapter folders from strangers, on every road: a typed error and the model as it was, or what the file says."""

from __future__ import annotations

import copy
import json
import shutil
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from peft import PeftModel
from safetensors.torch import load_file
from torch import nn

from peft_landermt import LanderConfig
from peft_landermt.strict_json import parse_json

from ..tuner.helpers import ids, logits
from ..tuner.roads import assert_as_before, snapshot
from .campaign import at_most, attempt
from .mutations import STRINGS, Tensors, changed_json, changed_tensors, damaged
from .stage import CONFIG, PREFIX, READ_FIRST, ROADS, VARIANTS, WEIGHTS, Stage

pytestmark = pytest.mark.filterwarnings("ignore")


@cache
def stage(root: Path) -> Stage:
    return Stage(root)


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    yield stage(tmp_path_factory.mktemp("folders"))
    stage.cache_clear()


# What a file says


def own_key(key: str, adapter: str) -> str | None:
    """A key of a model as it is in the adapter's file; None for what is not the adapter's."""
    for mark, inside in ((f".lander_blocks.{adapter}.", ".lander_blocks."), (f".modules_to_save.{adapter}.", ".")):
        if mark in key:
            return PREFIX + key.removeprefix(PREFIX).replace(mark, inside)
    return None


def others_of(model: nn.Module, adapter: str, besides: set[str]) -> dict[str, torch.Tensor]:
    """All tensors that are not an adapter's, by the names that they have without one."""
    found = {}
    for key, value in model.state_dict().items():
        if own_key(key, adapter) is None:
            plain = key.removeprefix(PREFIX).replace(".base_layer.", ".").replace(".original_module.", ".")
            if PREFIX + plain not in besides:
                found[plain] = value
    return found


def merged_by_hand(base: nn.Module, config: Mapping[str, Any], state: Tensors, pair: str) -> nn.Module:
    """A base with the deltas of a file in its weights, and the saved modules of the file."""
    model = copy.deepcopy(base)
    weights = model.state_dict()
    for key, value in state.items():
        if (plain := key.removeprefix(PREFIX)) in weights:
            weights[plain].copy_(value)
    for name in {key.partition(".lander_blocks.")[0] for key in state if ".lander_blocks." in key}:
        module = name.removeprefix(PREFIX)
        counts = (config["neuron_counts"] or {}).get(module)
        if counts is not None and pair not in counts["language_pairs"]:
            continue
        for block in ("general", *pair.split("-")):
            blocks = f"{name}.lander_blocks.{block}"
            for projection in ("gate_proj", "up_proj", "down_proj"):
                if f"{blocks}_{projection}_A" in state:
                    rows = state[f"{blocks}_{projection}_B"].float() @ state[f"{blocks}_{projection}_A"].float()
                elif f"{blocks}_{projection}" in state:
                    rows = state[f"{blocks}_{projection}"].float()
                else:
                    continue
                neurons = state[f"{blocks}_neurons"].long()
                weight = weights[f"{module}.{projection}.weight"]
                (weight.t() if projection == "down_proj" else weight)[neurons] += rows
    return model


def check_accepted(here: Stage, variant: str, road: str, model: Any, folder: Path, before: Any) -> None:
    """The adapter is what the files say, everything else is as it was, and the logits are what follows."""
    adapter = "second" if road == "load_adapter" else "default"
    if not isinstance(model.peft_config[adapter], LanderConfig):
        return
    state = {own_key(key, adapter) or key: value for key, value in load_file(folder / WEIGHTS).items()}
    config = parse_json((folder / CONFIG).read_text())
    held = {own: value for key, value in model.state_dict().items() if (own := own_key(key, adapter)) is not None}
    brought = {key for key in state if ".lander_blocks." not in key and key not in held}
    assert brought <= {f"{PREFIX}model.embed_tokens.weight"} and held.keys() == state.keys() - brought
    assert all(value.equal(state[key].to(value.dtype)) for key, value in held.items())
    after = others_of(model, adapter, brought)
    assert after.keys() == before.keys() and all(value.equal(before[key]) for key, value in after.items())
    loaded = model.peft_config[adapter]
    if road != "set_peft_model_state_dict":
        for name in ("language_pairs", "car", "inactive_neurons", "tune", "general_rank", "neuron_counts"):
            default = type(loaded).__dataclass_fields__[name].default
            assert getattr(loaded, name) == config.get(name, default), name
    pairs = loaded.language_pairs
    if not pairs or (len(pairs) > 1 and not isinstance(model, PeftModel)):
        return
    model.set_adapter(adapter)
    found = logits(model.eval(), ids(), **({"language_pairs": [pairs[0]] * 3} if len(pairs) > 1 else {}))
    largest = max(float(value.abs().max()) for value in state.values() if value.is_floating_point() and value.numel())
    if largest < 100:
        assert torch.isfinite(found).all()
    if loaded.car == "off" and loaded.inactive_neurons == "keep" and largest < 100:
        expected = logits(merged_by_hand(here.base(variant), config_of(loaded), state, pairs[0]), ids())
        torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3 * float(expected.abs().max()))


def config_of(config: Any) -> dict[str, Any]:
    return {"neuron_counts": config.neuron_counts}


def try_road(here: Stage, variant: str, road: str, folder: Path, must_be_refused: bool = False, *readers: str) -> None:
    """Load a folder on a road; check what came of it. `readers` may raise errors of their own."""
    start, load = ROADS[road]
    model = here.model(start, variant)
    before = None if model is None else snapshot(model)
    adapter = "second" if road == "load_adapter" else "default"
    others = others_of(model if model is not None else here.base(variant), adapter, set())
    others = {key: value.clone() for key, value in others.items()}
    result = attempt(road, lambda: load(model, folder), (*readers, *READ_FIRST.get(road, ())))
    if isinstance(result, Exception):
        if model is not None:
            assert_as_before(model, before)
        return
    assert not must_be_refused
    loaded = result if road in ("from_pretrained", "AutoModel", "AutoPeftModel", "join_adapters") else model
    here.models.pop((start or "", variant), None)
    loaded_state = load_file(folder / WEIGHTS)
    brought = {key for key in loaded_state if key == f"{PREFIX}model.embed_tokens.weight"}
    kept = {key: value for key, value in others.items() if PREFIX + key not in brought}
    check_accepted(here, variant, road, loaded, folder, kept)


def copied(here: Stage, variant: str) -> tuple[Path, dict[str, Any], Tensors]:
    """A copy of a variant's folder, its config and its tensors."""
    folder = here.root / "changed"
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(here.root / variant, folder)
    return folder, json.loads((folder / CONFIG).read_text()), Tensors(load_file(folder / WEIGHTS))


FILE_ROADS = [road for road in ROADS if road != "set_peft_model_state_dict"]
variants, roads = st.sampled_from(sorted(VARIANTS)), st.sampled_from(FILE_ROADS)
signing = st.sampled_from(["anew", "anew", "anew", "none", "not"])


def other_keys(state: Tensors) -> list[str]:
    """Keys of the base, of other adapters, and of what looks like this one's."""
    block = next(key.rpartition(".")[0] for key in sorted(state) if ".lander_blocks." in key)
    layer = block.removesuffix(".lander_blocks")
    return [
        *(f"{PREFIX}model.embed_tokens.weight", f"{PREFIX}lm_head.weight", f"{PREFIX}model.norm.weight"),
        *(
            f"{layer}.up_proj.weight",
            f"{layer}.base_layer.up_proj.base_layer.weight",
            f"{layer}.up_proj.base_layer.weight",
        ),
        *(f"{layer}.lander_blocks.good.general_gate_proj_A", f"{layer}.lander_blocks.default.general_neurons"),
        *(f"{PREFIX}lm_head.modules_to_save.default.weight", f"{PREFIX}lm_head.modules_to_save.good.weight"),
        *(f"{PREFIX}lm_head.original_module.weight", f"{layer}.up_proj.base_layer.weight"),
        *(f"{block}.fr_neurons", f"{block}.gates", f"{block}.mean_gradient", "", ".", "weight", "\0", "é\x1b[2J"),
        *(
            f"{PREFIX}{PREFIX}lm_head.weight",
            "model.embed_tokens.weight",
            f"{block}._parameters",
            f"{block}.__class__",
        ),
    ]


@pytest.mark.parametrize("road", ROADS)
@at_most(2)
@given(data=st.data(), variant=variants, sign=signing)
def test_changed_tensors(here: Stage, road: str, data: st.DataObject, variant: str, sign: str) -> None:
    folder, config, state = copied(here, variant)
    changed = data.draw(changed_tensors(state, other_keys(state)))
    same = changed.keys() == state.keys() and all(
        value.dtype == state[key].dtype and value.equal(state[key]) for key, value in changed.items()
    )
    here.write(folder, config, changed, sign)
    try_road(here, variant, road, folder, sign == "not" and road in FILE_ROADS and not same)


@pytest.mark.parametrize("road", FILE_ROADS)
@at_most(2)
@given(data=st.data(), variant=variants, sign=signing)
def test_changed_configs(here: Stage, road: str, data: st.DataObject, variant: str, sign: str) -> None:
    folder, config, _ = copied(here, variant)
    start = {key: value for key, value in config.items() if key not in ("peft_type", "task_type")}
    kinds = {"peft_type": config["peft_type"], "task_type": config["task_type"]}
    changed = data.draw(changed_json(start))
    try:
        here.write(folder, {**kinds, **changed}, sign=sign)
    except UnicodeEncodeError:
        return
    try_road(here, variant, road, folder)


@pytest.mark.parametrize("file", [WEIGHTS, CONFIG])
@at_most(8)
@given(data=st.data(), variant=variants, road=roads)
def test_damaged_bytes(here: Stage, file: str, data: st.DataObject, variant: str, road: str) -> None:
    folder, *_ = copied(here, variant)
    start = (folder / file).read_bytes()
    content = data.draw(damaged(start) | st.binary(max_size=64))
    (folder / file).write_bytes(content)
    readers = ("peft", "transformers") if file == CONFIG else ()  # the type must be known to know who reads the rest
    try_road(here, variant, road, folder, file == WEIGHTS and content != start, *readers)


@at_most(8)
@given(data=st.data(), variant=variants, road=roads)
def test_headers_of_weights(here: Stage, data: st.DataObject, variant: str, road: str) -> None:
    """What the safetensors header says of types, shapes, places and itself."""
    folder, config, _ = copied(here, variant)
    content = (folder / WEIGHTS).read_bytes()
    size = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + size])
    kinds = ["F4", "F6_E2M3", "F8_E5M2", "F8_E8M0", "C64", "U16", "U64", "I8", "BOOL", "F64", "F16", "X", *STRINGS[:8]]
    if data.draw(st.booleans()):
        key = data.draw(st.sampled_from(sorted(set(header) - {"__metadata__"})))
        header[key]["dtype"] = data.draw(st.sampled_from(kinds))
    else:
        header = data.draw(changed_json(header))
    text = json.dumps(header).encode()
    (folder / WEIGHTS).write_bytes(len(text).to_bytes(8, "little") + text + content[8 + size :])
    here.write(folder, config)
    try_road(here, variant, road, folder)
