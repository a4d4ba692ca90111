"""Adapter folders from strangers, on every road: a typed error and the model as it was, or what the file says."""

from __future__ import annotations

import copy
import json
import shutil
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from peft import AutoPeftModelForCausalLM, PeftModel, set_peft_model_state_dict
from peft.utils import load_peft_weights
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import AutoModelForCausalLM

from peft_landermt import LanderConfig, NeuronMap, detect_neurons, join_adapters
from peft_landermt.routed.folder import digest_of
from peft_landermt.strict_json import parse_json

from ..conftest import PAIRS, SENTENCES, build_model, make_tokenizer
from ..tuner.helpers import adapt, ids, logits, make_config
from ..tuner.roads import assert_as_before, by_transformers, first, hotswap, over_itself, second, snapshot
from .campaign import at_most, attempt
from .mutations import STRINGS, Tensors, changed_json, changed_tensors, damaged

WEIGHTS, CONFIG = "adapter_model.safetensors", "adapter_config.json"
PREFIX = "base_model.model."
pytestmark = pytest.mark.filterwarnings("ignore")

VARIANTS: dict[str, dict[str, Any]] = {
    "two pairs": {"language_pairs": ["en-de", "en-fr"]},
    "rows": {"language_pairs": ["en-de"], "general_rank": None, "tune": "pair"},
    "saved module": {"language_pairs": ["en-de"], "modules_to_save": ["lm_head"]},
    "token, drop": {"language_pairs": ["en-de"], "car": "token", "inactive_neurons": "drop"},
    "paper": {"language_pairs": ["en-de"], "car": "paper"},
    "learned": {"language_pairs": ["en-de", "de-en"], "car": "learned"},
    "no map": {"language_pairs": ["en-de"]},
    "embeddings": {"language_pairs": ["en-de"]},
}


def by_state_dict(model: PeftModel, folder: Path) -> Any:
    """Only the tensors are read."""
    return set_peft_model_state_dict(model, load_peft_weights(str(folder), device="cpu"))


def auto(model: None, folder: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(str(folder))


def auto_peft(model: None, folder: Path) -> Any:
    return AutoPeftModelForCausalLM.from_pretrained(str(folder))


def joined(model: nn.Module, folder: Path) -> Any:
    return join_adapters(model, [folder])


ROADS: dict[str, tuple[str | None, Callable[..., Any]]] = {
    "from_pretrained": ("plain", first),
    "load_adapter": ("another", second),
    "load_adapter, a loaded name": ("same form", over_itself),
    "hotswap_adapter": ("same form", hotswap),
    "transformers": ("plain", by_transformers),
    "set_peft_model_state_dict": ("same form", by_state_dict),
    "AutoModel": (None, auto),
    "AutoPeftModel": (None, auto_peft),
    "join_adapters": ("plain", joined),
}


READ_FIRST = {
    "set_peft_model_state_dict": ("peft",),
    "AutoModel": ("transformers",),
    "AutoPeftModel": ("transformers",),
}
"""Who looks at a state dict or a folder before this package is asked, even if it says that it is of this package."""


class Stage:
    """Folders of all variants, and models to load them into, each made once and used while loads are refused."""

    def __init__(self, root: Path) -> None:
        self.root = root
        base = build_model("llama")
        self.neuron_map: NeuronMap = detect_neurons(
            base, make_tokenizer(), SENTENCES, PAIRS, num_layers=2, general_ratio=0.7, progress=False
        )
        self.models: dict[tuple[str, str], nn.Module] = {}
        for name in VARIANTS:
            model = self.base(name)
            model.save_pretrained(root / "bases" / name)
            model.name_or_path = model.config._name_or_path = str(root / "bases" / name)
            self.adapted(model, name, 1).save_pretrained(root / name)
            if name == "embeddings":
                # PEFT saves them of its own accord only where the base on disk has other ones
                state = load_file(root / name / WEIGHTS)
                state[f"{PREFIX}model.embed_tokens.weight"] = model.get_input_embeddings().weight.detach()
                config = json.loads((root / name / CONFIG).read_text())
                self.write(root / name, {**config, "embedding_layers": ["model.embed_tokens"]}, state)

    def base(self, variant: str) -> Any:
        """A base; one with more tokens than others where embeddings travel along."""
        model = build_model("llama")
        if variant == "embeddings":
            model.resize_token_embeddings(130, mean_resizing=False)
        return model

    def adapted(self, base: Any, variant: str, seed: int) -> PeftModel:
        """A base with an adapter of a variant."""
        return adapt(base, None if variant == "no map" else self.neuron_map, seed=seed, **VARIANTS[variant])

    def model(self, start: str | None, variant: str) -> Any:
        """A model as a road needs it."""
        if start is None:
            return None
        if (start, variant) not in self.models:
            model = self.base(variant)
            if start == "another":
                model = adapt(model, self.neuron_map, ["en-fr"], adapter_name="good", modules_to_save=["lm_head"])
            elif start == "same form":
                model = self.adapted(model, variant, 7)
                model.add_adapter("good", make_config(self.neuron_map, ["en-fr"], modules_to_save=["lm_head"]))
            next(iter(model.parameters())).requires_grad_(False)
            self.models[start, variant] = model
        return self.models[start, variant]

    def write(self, folder: Path, config: Any, state: Tensors | None = None, sign: str = "anew") -> None:
        """Write config and tensors, with a digest that fits, without one, or with that of before."""
        if state is not None:
            save_file(state, folder / WEIGHTS, {"format": "pt"})
        if isinstance(config, dict) and sign != "not":
            config = {**config, "digest": None}
            if sign == "anew":
                config["digest"] = digest_of(config, folder / WEIGHTS)
        (folder / CONFIG).write_text(json.dumps(config))


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
