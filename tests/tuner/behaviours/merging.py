"""Merging adapters into the base weights, and taking them out again."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from transformers import AutoModelForCausalLM

from peft_landermt.errors import ConfigError, LanderError

from ...conftest import PAIRS
from ..helpers import cloned_state, ids, logits, same_state
from .case import Case, close


def merges_and_unmerges(case: Case) -> None:
    """Three pairs, or one three times; every bit comes back, and a second time gives the same bits."""
    if not case.can_merge:
        return refuses_to_merge(case)
    for dtype in (torch.float32, torch.bfloat16):
        model = case.adapted(base=case.base().to(dtype))
        state, merged = cloned_state(model), {}
        for cycle, pair in enumerate([*PAIRS, "en-de"] if case.route else ["en-de"] * 3):
            case.choose(model, pair)
            expected = logits(model, ids())
            model.merge_adapter(safe_merge=cycle == 1)
            if dtype == torch.float32:
                close(logits(model, ids()), expected)
            weights = cloned_state(model)
            assert {key: value.dtype for key, value in weights.items()} == {
                key: value.dtype for key, value in state.items()
            }
            assert not same_state(weights, state) and same_state(weights, merged.setdefault(pair, weights))
            with pytest.warns(UserWarning, match="All adapters are already merged, nothing to do"):
                model.merge_adapter()
            assert same_state(model.state_dict(), weights)
            model.unmerge_adapter()
            assert same_state(model.state_dict(), state) and logits(model, ids()).equal(expected)
        with pytest.warns(UserWarning, match="Already unmerged"):
            model.unmerge_adapter()


def refuses_to_merge(case: Case) -> None:
    """A gate that depends on the input: nothing is written."""
    model = case.adapted()
    case.choose(model)
    expected, before = case.out(model), cloned_state(model)
    message = (
        f"car='{case.options['car']}': the gate of adapter 'default' depends on the input.*keep the adapter active"
    )
    for merge in (model.merge_adapter, model.merge_and_unload, partial(model.merge_adapter, safe_merge=True)):
        with pytest.raises(ConfigError, match=message):
            merge()
        assert same_state(model.state_dict(), before)
    assert case.out(model).equal(expected)


def merges_and_unloads(case: Case) -> None:
    """A plain model, whose files need nothing of this package; merged before or not."""
    if not case.can_merge:
        return refuses_to_merge(case)
    kinds = [type(module) for module in case.model.modules()]
    for merged_before in (False, True):
        model = case.adapted()
        routed = case.choose(model)
        expected = case.out(model, **routed)
        if merged_before:
            model.merge_adapter()
            with pytest.warns(UserWarning, match="All adapters are already merged"):
                plain = model.merge_and_unload()
        else:
            plain = model.merge_and_unload(safe_merge=True)
        close(logits(plain, ids()), expected)
        assert list(plain.state_dict()) == list(case.model.state_dict())
        assert [type(module) for module in plain.modules()] == kinds
    plain.save_pretrained(case.folder)
    loaded = AutoModelForCausalLM.from_pretrained(case.folder).eval()
    assert type(loaded) is type(case.model) and logits(loaded, ids()).equal(logits(plain, ids()))


def unloads(case: Case) -> None:
    kinds = [type(module) for module in case.model.modules()]
    for merged_before in (False, True) if case.can_merge else (False,):
        base = case.base()
        model = case.adapted(base=base)
        if merged_before:
            case.choose(model)
            model.merge_adapter()
        plain = model.unload()
        assert plain is base and list(plain.state_dict()) == list(case.model.state_dict())
        assert same_state(plain.state_dict(), case.model.state_dict())
        assert logits(plain, ids()).equal(logits(case.model, ids()))
        assert [type(module) for module in plain.modules()] == kinds


def merges_safely(case: Case) -> None:
    """One NaN in the last layer is found before anything is written; unchecked it is written, as PEFT does."""
    if not case.can_merge:
        pytest.skip("not applicable: a gate that depends on the input is never merged")
    model = case.adapted()
    case.choose(model)
    parameters = dict(case.layers(model)[case.last_layer].blocks("default").named_parameters())
    with torch.no_grad():
        chosen = [weight for key, weight in parameters.items() if key.startswith("de_")] or [*parameters.values()]
        chosen[-1][-1, -1] = float("nan")

    def base_weights() -> dict[str, torch.Tensor]:
        return {key: value.clone() for key, value in model.state_dict().items() if f".{case.prefix}" not in key}

    before = base_weights()
    message = "NaNs detected in the merged weights. The adapter default seems to be broken"
    for merge in (model.merge_adapter, model.merge_and_unload):
        with pytest.raises(ValueError, match=message):
            merge(safe_merge=True)
        assert same_state(base_weights(), before)
    model.merge_adapter()
    assert not all(value.isfinite().all() for value in base_weights().values())
    model.unmerge_adapter()
    assert same_state(base_weights(), before)


def adds_active_adapters(case: Case) -> None:
    """Deltas add up; adapters that route neurons are refused together."""
    model = case.adapted(seed=1)
    model.add_adapter("second", case.config())
    model.base_model.set_adapter(["default", "second"])
    if not case.adds_up:
        with pytest.raises(LanderError, match=r"one active adapter|activate one adapter at a time"):
            case.out(model)
        return
    case.choose(model)
    assert torch.isfinite(logits(model, ids())).all()
