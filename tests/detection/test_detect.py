"""Detection from end to end: what it leaves behind, what it costs, and what it hands back."""

from __future__ import annotations

import copy
import math
import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.multiprocessing.reductions import StorageWeakRef

from peft_landermt import NeuronMap, __version__, detect_neurons
from peft_landermt.errors import DetectionError
from peft_landermt.fingerprint import fingerprint

from ..conftest import PAIRS, SENTENCES, build_model
from .reference import OPTIONS, output_projections
from .state import assert_unchanged, state, used


@pytest.mark.parametrize("prepare", [nn.Module.eval, nn.Module.train, used], ids=["eval", "train", "mixed"])
def test_the_model_comes_back_as_it_was(base: nn.Module, tokenizer: Any, prepare: Callable[[nn.Module], Any]) -> None:
    prepare(base.requires_grad_(True))
    before = state(base)
    detect_neurons(base, tokenizer, **OPTIONS)
    assert_unchanged(base, before)


def _fail_in_forward(hidden: torch.Tensor, error: BaseException) -> None:
    raise error


def _fail_in_backward(hidden: torch.Tensor, error: BaseException) -> None:
    def fail(_gradient: torch.Tensor) -> None:
        raise error

    if hidden.requires_grad:
        hidden.register_hook(fail)


@pytest.mark.parametrize("fail", [_fail_in_forward, _fail_in_backward])
@pytest.mark.parametrize("error", [RuntimeError("out of memory"), KeyboardInterrupt()], ids=["error", "interrupt"])
def test_the_model_comes_back_after_a_failure(
    llama: nn.Module, tokenizer: Any, fail: Callable[[torch.Tensor, BaseException], None], error: BaseException
) -> None:
    used(llama)
    calls = 0

    def hook(_module: nn.Module, args: tuple[torch.Tensor, ...]) -> None:
        nonlocal calls
        calls += 1
        if calls > 8:  # after the 6 prompt batches, amid those of the sentences
            fail(args[0], error)

    output_projections(llama, "llama")[1].register_forward_pre_hook(hook)
    before = state(llama)
    with pytest.raises(type(error)):
        detect_neurons(llama, tokenizer, **OPTIONS, batch_size=2)
    assert calls > 8
    assert_unchanged(llama, before)


@pytest.mark.parametrize(
    ("weight", "value"),
    [
        ("model.layers.2.mlp.up_proj.weight", math.nan),
        ("model.embed_tokens.weight", math.nan),
        ("model.layers.0.mlp.down_proj.weight", math.inf),
    ],
)
def test_weights_that_are_not_finite(llama: nn.Module, tokenizer: Any, weight: str, value: float) -> None:
    used(llama)
    with torch.no_grad():
        llama.get_parameter(weight).fill_(value)
    before = state(llama)
    with pytest.raises(DetectionError, match=r"activations='en-de': .* NaN or infinite") as caught:
        detect_neurons(llama, tokenizer, **OPTIONS)
    assert (caught.value.field, caught.value.value) == ("activations", "en-de")
    assert_unchanged(llama, before)


def test_gradients_that_are_not_finite(llama: nn.Module, tokenizer: Any) -> None:
    """The head shows in the loss alone: activations are finite, awareness is not."""
    with torch.no_grad():
        llama.lm_head.weight.fill_(math.nan)
    with pytest.raises(DetectionError, match=r"awareness='model\.layers\.0\.mlp, en'"):
        detect_neurons(llama, tokenizer, **OPTIONS)


def test_no_weight_gets_a_gradient_and_every_module_evaluates(base: nn.Module, tokenizer: Any) -> None:
    base.train()
    accumulated: list[str] = []
    for name, parameter in base.named_parameters():
        parameter.register_post_accumulate_grad_hook(lambda _, name=name: accumulated.append(name))
    passes = 0

    def check(module: nn.Module, _args: Any) -> None:
        nonlocal passes
        passes += 1
        assert not any(parameter.requires_grad for parameter in module.parameters())
        assert not any(child.training for child in module.modules())

    handle = base.register_forward_pre_hook(check)
    detect_neurons(base, tokenizer, **OPTIONS)
    assert passes == 6  # a batch of sentences in 3 languages, of prompts in 3 pairs
    assert accumulated == []
    assert all(parameter.grad is None for parameter in base.parameters())
    handle.remove()
    base(input_ids=torch.tensor([[1, 5]])).logits.sum().backward()
    assert accumulated, "the watch works where weights do get gradients"


@pytest.mark.parametrize(("batch_size", "batches"), [(1, 4), (3, 2), (4, 1), (8, 1)])
def test_number_of_passes(llama: nn.Module, tokenizer: Any, batch_size: int, batches: int) -> None:
    """4 sentences in 3 languages, 4 prompts in 3 pairs: a batch of prompts is one forward, one of sentences has a
    backward as well, whatever the number of layers and neurons."""
    forwards, backwards, rows = {True: 0, False: 0}, 0, 0

    def count(_module: nn.Module, _args: Any, kwargs: dict[str, Any]) -> None:
        nonlocal rows
        forwards[torch.is_grad_enabled()] += 1
        rows += len(kwargs["input_ids"])

    def count_backward(*_: Any) -> None:
        nonlocal backwards
        backwards += 1

    llama.register_forward_pre_hook(count, with_kwargs=True)
    llama.lm_head.register_full_backward_hook(count_backward)
    detect_neurons(llama, tokenizer, **OPTIONS, batch_size=batch_size)
    assert forwards == {True: 3 * batches, False: 3 * batches}
    assert backwards == 3 * batches
    assert rows == 4 * 3 + 4 * 3


def _alive_at_every_batch(model: nn.Module, tokenizer: Any) -> list[list[int]]:
    """At the start of every forward pass and after the last: how many h and logits of each earlier batch live."""
    made: list[list[StorageWeakRef]] = []
    alive: list[list[int]] = []

    def look(*_: Any) -> None:
        alive.append([sum(not reference.expired() for reference in batch) for batch in made])
        made.append([])

    def note(tensor: torch.Tensor) -> None:
        made[-1].append(StorageWeakRef(tensor.untyped_storage()))

    model.register_forward_pre_hook(look)
    for projection in output_projections(model, "llama"):
        projection.register_forward_pre_hook(lambda _, args: note(args[0]))
    model.lm_head.register_forward_hook(lambda _module, _args, output: note(output))
    detect_neurons(model, tokenizer, **OPTIONS, batch_size=1)
    assert len(made) == 24
    assert all(len(batch) == 5 for batch in made)
    look()
    return alive


def test_memory_does_not_grow_with_the_number_of_batches(llama: nn.Module, tokenizer: Any) -> None:
    alive = _alive_at_every_batch(llama, tokenizer)
    assert not any(any(counts[:-1]) for counts in alive), "batches before the last one are gone"
    assert not any(alive[-1]), "nothing is left at the end"


def test_a_batch_is_gone_before_the_next_one(llama: nn.Module, tokenizer: Any) -> None:
    assert not any(any(counts) for counts in _alive_at_every_batch(llama, tokenizer))


def test_bfloat16(base: nn.Module, neuron_map: NeuronMap, tokenizer: Any) -> None:
    found = detect_neurons(base.to(torch.bfloat16), tokenizer, **OPTIONS)
    for half, full in zip(found.neurons, neuron_map.neurons, strict=True):
        for key in ("awareness", "mean_gradient", "mean_abs_activation"):
            assert getattr(half, key).dtype == torch.float32
        # 8 bits of precision: the same picture, not the same numbers
        assert float(torch.cosine_similarity(half.awareness, full.awareness).min()) > 0.99
        assert float((half.owner == full.owner).double().mean()) > 0.85


def test_shapes_and_types(neuron_map: NeuronMap, base: nn.Module, architecture: str) -> None:
    neurons = {"llama": 64, "gemma3": 64, "bloom": 128}[architecture]  # BLOOM has 4 d
    assert (neuron_map.num_layers, neuron_map.width) == (4, 32)
    assert neuron_map.languages == ("en", "de", "fr")
    assert neuron_map.language_pairs == PAIRS
    assert neuron_map.fingerprint == fingerprint(base)
    for layer in neuron_map.neurons:
        assert layer.name in dict(base.named_modules())
        assert (layer.owner.shape, layer.owner.dtype) == ((neurons,), torch.int64)
        assert int((layer.owner == -1).sum()) == round(0.7 * neurons)
        for tensor in (layer.awareness, layer.mean_gradient, layer.mean_abs_activation):
            assert (tensor.shape, tensor.dtype, tensor.device.type) == ((3, neurons), torch.float32, "cpu")
            assert not tensor.requires_grad


def test_progress(llama: nn.Module, tokenizer: Any, capfd: pytest.CaptureFixture[str]) -> None:
    detect_neurons(llama, tokenizer, **OPTIONS)
    assert capfd.readouterr() == ("", "")
    detect_neurons(llama, tokenizer, **{**OPTIONS, "progress": True}, batch_size=2)
    shown = capfd.readouterr()
    assert shown.out == ""
    assert "Detecting neurons: 100%" in shown.err
    assert "12/12" in shown.err  # 2 batches in 3 languages and 3 pairs


def _tensors(found: NeuronMap) -> list[torch.Tensor]:
    keys = ("owner", "awareness", "mean_gradient", "mean_abs_activation")
    return [getattr(layer, key) for layer in found.neurons for key in keys]


@pytest.mark.parametrize(
    ("architecture", "dropout"),
    [("llama", {"attention_dropout": 0.5}), ("bloom", {"hidden_dropout": 0.5, "attention_dropout": 0.5})],
)
def test_neither_seed_nor_dropout_matters(architecture: str, dropout: dict[str, float], tokenizer: Any) -> None:
    model = build_model(architecture, **dropout)
    expected = detect_neurons(model, tokenizer, **OPTIONS)
    model.train()
    for seed in (1, 2):
        torch.manual_seed(seed)
        generator = torch.get_rng_state()
        found = detect_neurons(model, tokenizer, **OPTIONS)
        assert torch.equal(torch.get_rng_state(), generator)
        assert all(map(torch.equal, _tensors(found), _tensors(expected)))
        assert (found.pair_layers, found.layer_changes) == (expected.pair_layers, expected.layer_changes)
        assert found.signature == expected.signature


def test_works_within_no_grad(llama: nn.Module, tokenizer: Any) -> None:
    expected = detect_neurons(llama, tokenizer, **OPTIONS)
    with torch.no_grad():
        found = detect_neurons(llama, tokenizer, **OPTIONS)
        assert not torch.is_grad_enabled()
    assert all(map(torch.equal, _tensors(found), _tensors(expected)))


def test_inference_mode_is_left_or_refused(llama: nn.Module, tokenizer: Any) -> None:
    with torch.inference_mode():
        try:
            found = detect_neurons(llama, tokenizer, **OPTIONS)
        except DetectionError:
            return
    assert found.num_layers == 4


def test_arguments_are_left_alone(llama: nn.Module, tokenizer: Any) -> None:
    sentences, pairs = copy.deepcopy(SENTENCES), list(PAIRS)
    detect_neurons(llama, tokenizer, sentences, pairs, num_layers=1, progress=False)
    assert (sentences, pairs) == (SENTENCES, PAIRS)


def test_signature_tells_how_the_map_was_made(llama: nn.Module, tokenizer: Any) -> None:
    signature = detect_neurons(llama, tokenizer, **OPTIONS).signature
    assert signature.splitlines() == [signature]
    parts = dict(part.split(":", 1) for part in signature.split("|"))
    data = parts.pop("data")
    assert re.fullmatch(r"[0-9a-f]{12}x4", data)
    assert parts == {
        "base": f"unnamed#{fingerprint(llama)}",
        "languages": "en+de+fr",
        "layers": "2",
        "general": "0.7",
        "activation": "mean",
        "normalized": "yes",
        "max_length": "256",
        "version": __version__,
    }


@pytest.mark.parametrize(
    ("part", "change"),
    [
        ("data", {"sentences": {**SENTENCES, "de": [*SENTENCES["de"][:3], "Es regnete."]}}),
        ("layers", {"num_layers": 3}),
        ("general", {"general_ratio": 0.8}),
        ("activation", {"activation_statistic": "mean_abs"}),
        ("normalized", {"normalize_awareness": False}),
        ("max_length", {"max_length": 100}),
        (None, {"batch_size": 2}),
        (None, {"progress": True}),
    ],
)
def test_signature_follows_the_options(
    llama: nn.Module, tokenizer: Any, part: str | None, change: dict[str, Any]
) -> None:
    first, second = (
        dict(item.split(":", 1) for item in detect_neurons(llama, tokenizer, **options).signature.split("|"))
        for options in (OPTIONS, {**OPTIONS, **change})
    )
    assert {key for key in first if first[key] != second[key]} == ({part} if part else set())
