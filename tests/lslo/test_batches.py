"""Batches of mixed pairs: each sample as if alone, in both directions of the pass, with beams and checkpointing."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from peft import PeftModel, prepare_model_for_kbit_training

from peft_landermt.errors import LanguagePairError
from peft_landermt.lslo import layer as layer_module
from peft_landermt.routed.call import Team

from ..conftest import PAIRS
from ..tuner.helpers import ids, logits
from ..tuner.helpers import ids as some_ids
from ..versions import TRANSFORMERS_4
from .helpers import BOTH_WAYS, DECODER_ONLY, TWO_STACKS, adapt, build, layers_of, parameters

ARCHITECTURES = [
    each if each in ("llama", "m2m100") else pytest.param(each, marks=pytest.mark.slow)
    for each in (*DECODER_ONLY, *TWO_STACKS)
]
INDEXES: dict[str, dict[str, Any]] = {
    "default": {},
    "source": {"index": "source", "rank": {"en": 1, "de": 3, "fr": 2}},
    "learned": {"index": "learned", "scaling": 0.5},
}


@pytest.fixture(params=ARCHITECTURES)
def architecture(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.mark.parametrize("tokens", [8, 24])
@pytest.mark.parametrize("kind", INDEXES)
def test_a_mixed_batch_is_each_sample_alone(architecture: str, kind: str, tokens: int) -> None:
    """Also where samples are so long that each has factors of its own."""
    model, ids = adapt(build(architecture), PAIRS, **INDEXES[kind]), partial(some_ids, length=tokens)
    together = logits(model, ids(), language_pairs=PAIRS)
    for row, pair in enumerate(PAIRS):
        alone = logits(model, ids()[row : row + 1], language_pairs=[pair])
        torch.testing.assert_close(together[row : row + 1], alone, rtol=1e-4, atol=1e-4)
        model.set_language_pair(pair)
        torch.testing.assert_close(logits(model, ids()[row : row + 1]), alone)
        for other in {*PAIRS} - {pair} if kind == "learned" else ():
            assert not logits(model, ids()[row : row + 1], language_pairs=[other]).equal(alone)


@pytest.mark.parametrize("beams", [{}, {"num_beams": 3}, {"num_beams": 2, "num_return_sequences": 2}])
def test_generation_is_each_sample_alone(architecture: str, beams: dict[str, Any]) -> None:
    model = adapt(build(architecture), PAIRS)
    options = {"max_new_tokens": 4, "min_new_tokens": 4, "do_sample": False, **beams}
    mask, count = torch.ones(3, 8, dtype=torch.long), beams.get("num_return_sequences", 1)
    together = model.generate(input_ids=ids(), attention_mask=mask, language_pairs=PAIRS, **options)
    for row, pair in enumerate(PAIRS):
        one = {"input_ids": ids()[row : row + 1], "attention_mask": mask[:1], "language_pairs": [pair]}
        assert model.generate(**one, **options).equal(together[row * count : (row + 1) * count])


def expected_side(name: str, layers: int = 4) -> str:
    """The default index: in an encoder of four layers the source in the lower three, the target elsewhere."""
    if "encoder." in name:
        return (
            "source" if int(next(part for part in name.split(".") if part.isdigit())) < layers * 3 // 4 else "target"
        )
    return "target"


@pytest.mark.parametrize("kind", INDEXES)
def test_gradients_of_long_samples_are_those_of_short_ones(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Factors of each sample, and those of all languages side by side, are two ways to compute the same."""
    found = []
    for limit in (1, 1000):
        monkeypatch.setattr(layer_module, "LONG", limit)
        model = adapt(build("llama"), PAIRS, **INDEXES[kind]).train()
        model(input_ids=ids(), labels=ids(), language_pairs=PAIRS).loss.backward()
        found.append({name: weight.grad for name, weight in parameters(model).items()})
    for name, gradient in found[0].items():
        torch.testing.assert_close(gradient, found[1][name], rtol=1e-4, atol=1e-6, msg=name)


def test_gradients_reach_the_languages_of_a_sample_only(architecture: str) -> None:
    """Of its source in source-indexed layers and of its target in target-indexed ones; others are None, not zero."""
    model = adapt(build(architecture), PAIRS, rank=1).train()
    model(input_ids=ids(1), labels=ids(1), language_pairs=["en-de"]).loss.backward()
    for name, weight in parameters(model).items():
        language = name.rpartition(".")[2].partition("_")[0]
        used = language == {"source": "en", "target": "de"}[expected_side(name)]
        assert (weight.grad is not None) == used, name
        assert not used or weight.grad.abs().max() > 0, name


@pytest.mark.parametrize("tokens", [8, 24])
@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
def test_absent_languages_stay_through_momentum(weight_decay: float, tokens: int) -> None:
    """fr was trained with momentum; steps without it leave it bit for bit."""
    ids = partial(some_ids, length=tokens)
    model = adapt(build("llama"), PAIRS).train()
    chosen = [weight for weight in model.parameters() if weight.requires_grad]
    optimizer = torch.optim.AdamW(chosen, lr=1e-2, weight_decay=weight_decay)

    def step(pairs: list[str]) -> dict[str, torch.Tensor]:
        optimizer.zero_grad()
        model(input_ids=ids(len(pairs)), labels=ids(len(pairs)), language_pairs=pairs).loss.backward()
        optimizer.step()
        return {name: weight.detach().clone() for name, weight in parameters(model).items()}

    step(PAIRS)
    before = step(PAIRS)
    after = [step(["en-de"]), step(["en-de", "en-de"])][-1]
    changed = {name.rpartition(".")[2][:2] for name in before if not before[name].equal(after[name])}
    assert changed == {"de"}


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")
def test_checkpointing_gives_the_same_gradients(architecture: str) -> None:
    found = []
    ways: list[dict[str, bool] | None] = [None, {"use_reentrant": False}, {"use_reentrant": True}]
    if TRANSFORMERS_4 and architecture == "m2m100":
        ways.pop()  # there it makes inputs of the encoder alone require gradients
    for keywords in ways:
        model = adapt(build(architecture), PAIRS, index="learned").train()
        if keywords is not None:
            model.gradient_checkpointing_enable(keywords)
            model.enable_input_require_grads()
        model(input_ids=ids(), labels=ids(), language_pairs=PAIRS).loss.backward()
        found.append({name: weight.grad for name, weight in parameters(model).items()})
    for other in found[1:]:
        for name, gradient in found[0].items():
            torch.testing.assert_close(other[name], gradient, msg=name)


def test_a_prepared_base_trains() -> None:
    model = adapt(prepare_model_for_kbit_training(build("llama")), PAIRS).train()
    model(input_ids=ids(), labels=ids(), language_pairs=PAIRS).loss.backward()
    assert all(weight.grad is not None for name, weight in parameters(model).items() if ".en_" not in name)


def test_dropout_is_of_the_input_of_a_in_training_only() -> None:
    model, plain = (adapt(build("llama"), ["en-de"], dropout=rate) for rate in (0.5, 0.0))
    assert logits(model, ids()).equal(logits(plain, ids()))
    torch.manual_seed(0)
    assert not logits(model.train(), ids()).equal(logits(plain, ids()))


def unlisted(index: str, pairs: list[str]) -> set[str]:
    model = adapt(build("llama"), pairs, index=index)
    served = set()
    for pair in ("en-de", "de-en", "en-fr", "fr-en", "de-fr", "fr-de"):
        try:
            logits(model, ids(1), language_pairs=[pair])
        except LanguagePairError:
            continue
        served.add(pair)
    return served - set(pairs)


def test_untrained_combinations_of_trained_languages_are_served_by_name() -> None:
    """Where their languages have factors in all layers that take them; they are not listed."""
    assert unlisted("target", PAIRS) == {"fr-en", "de-fr", "fr-de"}
    assert unlisted("source", PAIRS) == {"de-fr"}
    assert unlisted("learned", PAIRS) == {"fr-en", "de-fr", "fr-de"}
    assert unlisted("target", ["en-de"]) == set() and unlisted("learned", ["en-de"]) == {"de-en"}
    model = adapt(build("llama"), BOTH_WAYS)
    assert model.routed_language_pairs == BOTH_WAYS
    model.set_language_pair("de-fr")
    chosen = logits(model, ids())
    assert chosen.equal(logits(model, ids(), language_pairs=["de-fr"] * 3))
    torch.testing.assert_close(logits(model.merge_and_unload(), ids()), chosen, rtol=1e-4, atol=1e-4)


def test_the_order_of_a_batch_does_not_matter() -> None:
    model = adapt(build("llama"), PAIRS, index="learned")
    there = logits(model, ids(), language_pairs=PAIRS)
    back = logits(model, ids().flip(0), language_pairs=PAIRS[::-1])
    torch.testing.assert_close(back.flip(0), there, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("options", "tokens", "count"), [({}, 8, 1), ({}, 24, 1), ({"index": "learned"}, 24, 2)])
def test_a_forward_makes_the_masks_of_a_batch_once(
    options: dict[str, Any], tokens: int, count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not once a layer: on a GPU each would be a copy from the host."""
    made: list[int] = []
    original = Team._weigh
    monkeypatch.setattr(Team, "_weigh", lambda *args: (made.append(1), original(*args))[1])
    model = adapt(build("llama"), PAIRS, **options)
    logits(model, ids(length=tokens), language_pairs=PAIRS)
    assert len(made) == count and len(layers_of(model)) == 28


def test_a_call_of_one_language_needs_no_mask(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Team, "_weigh", None)
    model: PeftModel = adapt(build("llama"), [*PAIRS, "fr-de"])
    for tokens in (8, 24):
        logits(model, ids(length=tokens), language_pairs=["en-de", "fr-de", "en-de"])
