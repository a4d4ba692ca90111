"""Calls in several threads, and calls inside of calls: each is answered as it would be alone."""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
from peft import PeftModel
from transformers import LogitsProcessorList, PreTrainedModel

from peft_landermt import NeuronMap
from peft_landermt.errors import ConcurrencyError

from ..conftest import PAIRS, build_model, randomize_adapter
from .helpers import adapt, ids, logits, make_config

GENERATE = {"max_new_tokens": 4, "min_new_tokens": 4, "do_sample": False, "pad_token_id": 0}


@pytest.fixture
def architecture() -> str:
    return "llama"


def in_threads(*work: Callable[[], None]) -> list[Exception]:
    """Run each function in a thread of its own, all at once; return what they raised."""
    errors: list[Exception] = []
    barrier = threading.Barrier(len(work))

    def run(function: Callable[[], None]) -> None:
        barrier.wait()
        try:
            function()
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=run, args=(function,)) for function in work]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return errors


def named_adapters(base: PreTrainedModel, neuron_map: NeuronMap, **options: Any) -> PeftModel:
    """Two adapters of one pair each, and one of three pairs, which is active."""
    model = adapt(base, neuron_map, ["en-de"], adapter_name="one", **options)
    model.add_adapter("two", make_config(neuron_map, ["en-fr"], **options))
    model.add_adapter("three", make_config(neuron_map, PAIRS, **options))
    for seed, name in enumerate(("two", "three"), start=5):
        model.set_adapter(name)
        randomize_adapter(model, seed=seed)
    return model.eval()


@pytest.mark.parametrize(
    "options",
    [
        {},
        pytest.param({"car": "token"}, marks=pytest.mark.slow),
        pytest.param({"general_rank": None}, marks=pytest.mark.slow),
        pytest.param({"car": "learned"}, marks=pytest.mark.slow),
        pytest.param({"car": "paper", "inactive_neurons": "drop"}, marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_three_hundred_calls_from_three_threads(
    base: PreTrainedModel, neuron_map: NeuronMap, options: dict[str, Any]
) -> None:
    model = named_adapters(base, neuron_map, **options)
    routes: list[dict[str, list[str]]] = [
        {"language_pairs": PAIRS},
        {"language_pairs": ["en-fr"] * 3},
        {"adapter_names": ["two", "one", "__base__"]},
    ]
    expected = [logits(model, ids(), **route) for route in routes]
    right = [0, 0, 0]

    def serve(index: int) -> None:
        for _ in range(100):
            right[index] += logits(model, ids(), **routes[index]).equal(expected[index])

    assert in_threads(*(lambda index=index: serve(index) for index in range(3))) == []
    assert right == [100, 100, 100]


def test_generate_in_three_threads(base: PreTrainedModel, neuron_map: NeuronMap) -> None:
    """Beams and mixed pairs beside one adapter of one pair, which no keyword names, beside the base."""
    model = named_adapters(base, neuron_map)
    model.set_adapter("one")
    routes: list[dict[str, Any]] = [
        {"adapter_names": ["three"] * 3, "language_pairs": PAIRS, "num_beams": 2},
        {},
        {"adapter_names": ["__base__", "two", "one"]},
    ]

    def run(route: dict[str, Any]) -> torch.Tensor:
        return model.generate(input_ids=ids(), attention_mask=torch.ones(3, 8), **GENERATE, **route)

    expected, right = [run(route) for route in routes], [0, 0, 0]

    def serve(index: int) -> None:
        for _ in range(5):
            right[index] += run(routes[index]).equal(expected[index])

    assert in_threads(*(lambda index=index: serve(index) for index in range(3))) == []
    assert right == [5, 5, 5]


def ask_named(model: PeftModel, tokens: torch.Tensor) -> torch.Tensor:
    return logits(model, tokens, adapter_names=["two"] * len(tokens))


def ask_active(model: PeftModel, tokens: torch.Tensor) -> torch.Tensor:
    model.set_adapter("two")
    try:
        return logits(model, tokens)
    finally:
        model.set_adapter("one")


def ask_base(model: PeftModel, tokens: torch.Tensor) -> torch.Tensor:
    with model.disable_adapter():
        return logits(model, tokens)


def ask_pairs(model: PeftModel, tokens: torch.Tensor) -> torch.Tensor:
    route = {"adapter_names": ["three"] * len(tokens), "language_pairs": (PAIRS * 2)[: len(tokens)]}
    return logits(model, tokens, **route)


def ask_generate(model: PeftModel, tokens: torch.Tensor) -> torch.Tensor:
    mask = torch.ones_like(tokens)
    return model.generate(input_ids=tokens, attention_mask=mask, adapter_names=["two"] * len(tokens), **GENERATE)


@pytest.mark.parametrize("ask", [ask_named, ask_active, ask_base, ask_pairs, ask_generate])
def test_a_call_inside_of_generate(base: PreTrainedModel, neuron_map: NeuronMap, ask: Any) -> None:
    """As contrastive and ensemble decoding make them, from a logits processor."""
    model = named_adapters(base, neuron_map)
    model.set_adapter("one")
    answers: list[tuple[torch.Tensor, torch.Tensor]] = []

    def look(tokens: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        answers.append((tokens.clone(), ask(model, tokens)))
        return scores

    options = {"input_ids": ids(), "attention_mask": torch.ones(3, 8), **GENERATE}
    expected = model.generate(**options)
    assert model.generate(**options, logits_processor=LogitsProcessorList([look])).equal(expected)
    assert len(answers) == 4
    for tokens, answer in answers:
        assert answer.equal(ask(model, tokens))


def test_another_model_inside_of_generate(base: PreTrainedModel, neuron_map: NeuronMap) -> None:
    """Its adapters have the same names, and no call of its own says who is meant."""
    first, second = (adapt(copy.deepcopy(base), neuron_map, ["en-de"], seed=seed) for seed in (1, 2))
    inner = second.get_base_model()
    expected, found = logits(inner, ids()), []

    def look(_tokens: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        found.append(logits(inner, ids()))
        return scores

    named = {"adapter_names": ["__base__"] * 3}
    options = {"input_ids": ids(), "attention_mask": torch.ones(3, 8), **GENERATE, **named}
    first.generate(**options, logits_processor=LogitsProcessorList([look]))
    assert len(found) == 4 and all(each.equal(expected) for each in found)


def while_a_call_runs(model: PeftModel, work: Callable[[], Any], train: bool = False) -> list[Exception]:
    """What `work` raises in another thread while a call of this one is in the middle of the model."""
    errors: list[Exception] = []

    def hook(*_: Any) -> None:
        handle.remove()  # not for the other thread's call
        errors.extend(in_threads(work))

    handle = model.get_base_model().get_input_embeddings().register_forward_hook(hook)
    model.train(train)
    with torch.set_grad_enabled(train):
        model(input_ids=ids(), language_pairs=PAIRS)
    return errors


WRITERS: dict[str, Callable[[PeftModel, NeuronMap], Any]] = {
    "merge": lambda model, _: model.merge_adapter(["default"]),
    "unload": lambda model, _: model.unload(),
    "add": lambda model, neuron_map: model.add_adapter("new", make_config(neuron_map, ["en-de"])),
    "delete": lambda model, _: model.delete_adapter("other"),
}


@pytest.mark.parametrize("name", WRITERS)
def test_who_writes_while_others_read_is_refused(base: PreTrainedModel, neuron_map: NeuronMap, name: str) -> None:
    model = adapt(base, neuron_map, PAIRS)
    model.add_adapter("other", make_config(neuron_map, ["en-de"]))
    model.base_model.set_language_pair("en-de")
    before = {key: value.clone() for key, value in model.state_dict().items()}
    errors = while_a_call_runs(model, lambda: WRITERS[name](model, neuron_map))
    assert [type(error) for error in errors] == [ConcurrencyError]
    after = model.state_dict()
    assert before.keys() == after.keys() and all(after[key].equal(value) for key, value in before.items())
    WRITERS[name](model, neuron_map)  # once nobody reads


def test_two_threads_that_train_one_model_are_refused(base: PreTrainedModel, neuron_map: NeuronMap) -> None:
    model = adapt(base, neuron_map, PAIRS)

    def train() -> None:
        model(input_ids=ids(), labels=ids(), language_pairs=PAIRS)

    def read() -> None:
        logits(model, ids(), language_pairs=PAIRS)

    errors = while_a_call_runs(model, train, train=True)
    assert [str(error)[:31] for error in errors] == ["model='in training': another th"]
    assert while_a_call_runs(model, read, train=True) == []
    assert while_a_call_runs(model, train, train=False) == []
    train()


def test_nothing_is_left_of_a_call_that_failed(base: PreTrainedModel, neuron_map: NeuronMap) -> None:
    model = adapt(base, neuron_map, PAIRS)
    with pytest.raises(IndexError):
        logits(model, ids() + 10_000, language_pairs=PAIRS)
    model.base_model.set_language_pair("en-de")
    model.merge_adapter()


def test_a_copy_of_a_model_has_calls_of_its_own() -> None:
    model = adapt(build_model("llama"))
    expected = logits(model, ids())
    twin = copy.deepcopy(model)
    randomize_adapter(twin, seed=9)
    errors: list[Exception] = []
    handle = model.get_input_embeddings().register_forward_hook(lambda *_: errors.extend(in_threads(twin.unload)))
    assert logits(model, ids()).equal(expected) and errors == []
    handle.remove()
    assert logits(twin.get_base_model(), ids()).equal(logits(build_model("llama"), ids()))
