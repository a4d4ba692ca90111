"""Saving, loading and swapping adapters."""

from __future__ import annotations

import warnings

import pytest
from peft import (
    AutoPeftModelForCausalLM,
    PeftModel,
    get_peft_model_state_dict,
    set_peft_model_state_dict,
)
from safetensors.torch import load_file

from peft_landermt import hotswap_adapter
from peft_landermt.routed.tuner import RoutedTuner

from ...conftest import PAIRS
from ...versions import PEFT_BEFORE_0_21
from ..helpers import ids, logits, same_state
from .case import MODULES, Case, close, trainable

WEIGHTS, CONFIG, CARD = "adapter_model.safetensors", "adapter_config.json", "README.md"


def loads_an_adapter(case: Case) -> None:
    tuned = case.adapted(seed=2)
    tuned.save_pretrained(str(case.folder))
    model = case.adapted(seed=3)
    result = model.load_adapter(str(case.folder), "second")
    assert not result.missing_keys and not result.unexpected_keys
    model.set_adapter("second")
    assert case.out(model).equal(case.out(tuned))


def saves_and_loads(case: Case) -> None:
    tuned = case.adapted()
    expected = case.out(tuned)
    tuned.save_pretrained(case.folder / "sub")
    assert {path.name for path in (case.folder / "sub").iterdir()} == {WEIGHTS, CONFIG, CARD}
    for keywords in ({}, {"low_cpu_mem_usage": True}, {"autocast_adapter_dtype": False}):
        loaded = PeftModel.from_pretrained(case.base(), str(case.folder), subfolder="sub", **keywords)
        assert isinstance(loaded.base_model, RoutedTuner)
        assert case.out(loaded).equal(expected)
        assert same_state(loaded.state_dict(), tuned.state_dict())
        assert not trainable(loaded)
    loaded = PeftModel.from_pretrained(case.base(), str(case.folder / "sub"), is_trainable=True)
    assert trainable(loaded).keys() == trainable(tuned).keys()


def loads_base_and_adapter(case: Case) -> None:
    base = case.base()
    base.save_pretrained(case.folder / "base")
    base.name_or_path = str(case.folder / "base")
    tuned = case.adapted(base=base)
    tuned.save_pretrained(str(case.folder / "adapter"))
    loaded = AutoPeftModelForCausalLM.from_pretrained(str(case.folder / "adapter"))
    assert case.out(loaded).equal(case.out(tuned))


def hands_on_its_state(case: Case) -> None:
    tuned, other = case.adapted(seed=1), case.adapted(seed=2)
    state = get_peft_model_state_dict(tuned)
    assert all(f".{case.prefix}blocks." in key and "default" not in key for key in state)
    assert not case.out(other).equal(case.out(tuned))
    result = set_peft_model_state_dict(other, state)
    assert result.unexpected_keys == [] and not any(case.prefix in key for key in result.missing_keys)
    assert same_state(get_peft_model_state_dict(other), state)
    assert case.out(other).equal(case.out(tuned))


def saves_the_same_bytes(case: Case) -> None:
    tuned = case.adapted()
    tuned.save_pretrained(str(case.folder / "first"))
    PeftModel.from_pretrained(case.base(), str(case.folder / "first")).save_pretrained(str(case.folder / "second"))
    for name in (WEIGHTS, CONFIG, CARD):
        assert (case.folder / "first" / name).read_bytes() == (case.folder / "second" / name).read_bytes()


def transformers_loads_it(case: Case) -> None:
    if case.pairs == PAIRS:
        pytest.skip("not applicable: without PeftModel nothing hands on language_pairs; split the adapter first")
    tuned = case.adapted()
    tuned.save_pretrained(str(case.folder / "adapter"))
    expected, base = case.out(tuned), logits(case.model, ids())
    model = case.base()
    model.load_adapter(str(case.folder / "adapter"))
    assert logits(model, ids()).equal(expected)
    model.disable_adapters()
    assert logits(model, ids()).equal(base)
    model.enable_adapters()
    assert logits(model, ids()).equal(expected)
    model.save_pretrained(str(case.folder / "again"))
    assert PeftModel.from_pretrained(case.base(), str(case.folder / "again"))(ids()).logits.equal(expected)
    fresh = case.base()
    fresh.add_adapter(case.config(), "new")
    assert logits(fresh.eval(), ids()).equal(base)
    model.delete_adapter("default")
    assert not any(case.prefix in key for key in model.state_dict())


def saves_other_modules(case: Case) -> None:
    names = MODULES[case.architecture]
    tuned = case.adapted(modules_to_save=names)
    others = [name.removeprefix("base_model.model.") for name in trainable(tuned) if f".{case.prefix}" not in name]
    assert {name.partition(".modules_to_save.default.")[0] for name in others} == set(names)
    expected = case.out(tuned)
    assert not expected.equal(case.out(case.adapted()))
    tuned.save_pretrained(str(case.folder))
    saved = {key.removeprefix("base_model.model.") for key in load_file(case.folder / WEIGHTS)}
    weights = (name for name, _ in case.model.named_parameters(remove_duplicate=False))
    expected_keys = {name for name in weights if name.rpartition(".")[0] in names}
    assert {key for key in saved if f".{case.prefix}" not in key} == expected_keys
    loaded = PeftModel.from_pretrained(case.base(), str(case.folder))
    assert case.out(loaded).equal(expected)
    with loaded.disable_adapter():
        assert case.out(loaded).equal(logits(case.model, ids()))
    if case.can_merge:
        routed = case.choose(tuned)
        expected = case.out(tuned, **routed)
        close(logits(tuned.merge_and_unload(), ids()), expected)


def swaps_weights(case: Case) -> None:
    tuned = case.adapted(seed=2)
    tuned.save_pretrained(str(case.folder))
    model = case.adapted(seed=3)
    weights = {name: weight for name, weight in model.named_parameters()}
    hotswap_adapter(model, case.folder)
    assert case.out(model).equal(case.out(tuned))
    assert all(weight is weights[name] for name, weight in model.named_parameters())


def lives_without_warnings(case: Case) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", category=FutureWarning)
        if PEFT_BEFORE_0_21:  # of a base without a name
            warnings.filterwarnings("ignore", "Could not find a config file in  - ")
        model = case.adapted()
        case.out(model)
        model.save_pretrained(case.folder)
        loaded = PeftModel.from_pretrained(case.base(), case.folder)
        loaded.load_adapter(case.folder, "second")
        if case.can_merge:
            case.choose(loaded)
            loaded.merge_adapter()
            loaded.unmerge_adapter()
            loaded.merge_and_unload()
