"""Making, choosing, switching off and deleting adapters."""

from __future__ import annotations

import copy
import io
from contextlib import redirect_stdout

import pytest
import torch
from peft import get_peft_model, inject_adapter_in_model

from peft_landermt.routed.layer import RoutedLayer

from ...conftest import PAIRS, randomize_adapter
from ...versions import PEFT_BEFORE_0_21
from ..helpers import cloned_state, ids, logits
from .case import Case, trainable


def makes_an_adapter(case: Case) -> None:
    base = case.base()
    expected, config = logits(base, ids()), case.config()
    before = copy.deepcopy(config)
    model = get_peft_model(base, config).eval()
    if PEFT_BEFORE_0_21:  # which names a base without a name ""
        before.base_model_name_or_path = config.base_model_name_or_path
    if getattr(before, "attention_modules", None) == "auto":
        before.attention_modules = ["q", "k", "v", "o"]
    assert config == before
    assert case.out(model).equal(expected) is not case.changes_fresh_output
    randomize_adapter(model)
    assert not case.out(model).equal(expected)


def adds_an_adapter(case: Case) -> None:
    model = case.adapted()
    expected = case.out(model)
    model.add_adapter("second", case.config())
    assert case.out(model).equal(expected)
    for layer in case.layers(model).values():
        assert not any(weight.requires_grad for weight in layer.blocks("second").parameters())
    assert model.active_adapters == ["default"]


def sets_the_adapter(case: Case) -> None:
    model = case.adapted(seed=1)
    first = case.out(model)
    model.add_adapter("second", case.config())
    model.set_adapter("second")
    randomize_adapter(model, seed=2)
    second = case.out(model)
    assert not torch.allclose(first, second, atol=1e-2)
    for name, expected in (("default", first), ("second", second), ("default", first)):
        model.set_adapter(name)
        assert case.out(model).equal(expected)


def deletes_an_adapter(case: Case) -> None:
    """The name is free afterwards, for other pairs too; a merged adapter is kept."""
    model = case.adapted()
    expected = case.out(model)
    model.add_adapter("second", case.config())
    model.delete_adapter("second")
    assert list(model.peft_config) == ["default"] and not any("second" in key for key in model.state_dict())
    assert case.out(model).equal(expected)
    with pytest.raises(ValueError, match="Adapter second does not exist"):
        model.delete_adapter("second")
    model.add_adapter("second", case.config_for(["de-en"]))
    model.set_adapter("second")
    assert logits(model, ids()).shape == expected.shape
    model.set_adapter("default")
    if case.can_merge:
        case.choose(model)
        model.merge_adapter()
        with pytest.raises(ValueError, match="merged"):
            model.delete_adapter("default")
        model.unmerge_adapter()
    model.delete_adapter("default")
    assert list(model.peft_config) == ["second"]


def disables_the_adapter(case: Case) -> None:
    for dtype in (torch.float32, torch.bfloat16):
        base = case.base().to(dtype)
        plain = logits(base, ids())
        model = case.adapted(base=base)
        tuned = case.out(model)
        assert not tuned.equal(plain)
        with model.disable_adapter():
            assert case.out(model).equal(plain) and logits(model, ids()).equal(plain)
            mask = torch.ones(3, 8)
            generated = model.generate(input_ids=ids(), attention_mask=mask, max_new_tokens=2, **case.route)
            assert generated.shape == (3, 10)
        assert case.out(model).equal(tuned)


def sets_requires_grad(case: Case) -> None:
    model = case.adapted()
    for wanted in (False, True):
        model.set_requires_grad("default", requires_grad=wanted)
        for layer in case.layers(model).values():
            assert all(weight.requires_grad is wanted for weight in layer.blocks("default").parameters())


def follows_training_mode(case: Case) -> None:
    model = get_peft_model(case.base().eval(), case.config())
    assert not any(layer.training for layer in case.layers(model).values())
    model.train()
    assert all(layer.training and layer.base_layer.training for layer in case.layers(model).values())


def hands_on_attributes(case: Case) -> None:
    """Some models read a projection's weight from outside."""
    for layer in case.layers(case.adapted()).values():
        for projection in filter(None, layer.projection_names):
            assert getattr(layer, projection) is layer.base_layer.get_submodule(projection)
        with pytest.raises(AttributeError):
            layer.no_such_attribute  # noqa: B018


def deep_copies(case: Case) -> None:
    """A copy is a model of its own."""
    model = case.adapted()
    expected, before = case.out(model), cloned_state(model)
    twin = copy.deepcopy(model)
    assert case.out(twin).equal(expected)
    randomize_adapter(twin, seed=3)
    if case.route:
        case.choose(twin)
        with pytest.raises(ValueError, match="pass language_pairs"):
            logits(model, ids())
    assert not case.out(twin).equal(expected)
    assert case.out(model).equal(expected)
    assert all(value.equal(before[key]) for key, value in model.state_dict().items())


def injects_an_adapter(case: Case) -> None:
    model = inject_adapter_in_model(case.config(), case.base()).eval()
    assert any(isinstance(module, RoutedLayer) for module in model.modules())
    assert type(model) is type(case.model)
    if case.pairs != PAIRS:
        assert logits(model, ids()).equal(logits(case.model, ids()))


def counts_parameters(case: Case) -> None:
    model = case.adapted()
    expected = case.expected_parameters()
    total = sum(weight.numel() for weight in case.model.parameters())
    assert model.get_nb_trainable_parameters() == (expected, total + expected)
    assert sum(weight.numel() for weight in trainable(model).values()) == expected
    with redirect_stdout(io.StringIO()) as printed:
        model.print_trainable_parameters()
    assert f"trainable params: {expected:,d} || all params: {total + expected:,d}" in printed.getvalue()


def refuses_mixed_methods(case: Case) -> None:
    with pytest.raises(ValueError, match=case.config().PEFT_TYPE):
        get_peft_model(case.base(), case.config(), mixed=True)
