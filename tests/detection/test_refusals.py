"""Every argument and model that detection refuses, before the model is touched."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
from peft import IA3Config, LoraConfig, PrefixTuningConfig, PromptTuningConfig, get_peft_model
from torch import nn
from transformers import LlamaForSequenceClassification, LlamaModel

from peft_landermt import detect_neurons
from peft_landermt.errors import ArchitectureError, CorpusError, DetectionError, LanderError, LanguagePairError

from ..conftest import SENTENCES, VOCABULARY, build_model
from .reference import OPTIONS
from .state import HOOKS, assert_unchanged, state, used


def _with(**changes: Any) -> dict[str, Any]:
    return {**OPTIONS, **changes}


def _sentences(**changes: Any) -> dict[str, Any]:
    return _with(sentences={**SENTENCES, **changes})


REFUSED: dict[str, tuple[type[LanderError], str, dict[str, Any]]] = {
    "malformed pair": (LanguagePairError, "language_pairs", _with(language_pairs=["en_de"])),
    "no pair": (LanguagePairError, "language_pairs", _with(language_pairs=[])),
    "lone pair": (LanguagePairError, "language_pairs", _with(language_pairs="en-de")),
    "double pair": (LanguagePairError, "language_pairs", _with(language_pairs=["en-de", "en-de"])),
    "malformed code": (LanguagePairError, "sentences", _with(sentences={**SENTENCES, "English": SENTENCES["en"]})),
    "code not a string": (LanguagePairError, "sentences", _with(sentences={**SENTENCES, 1: SENTENCES["en"]})),
    "pair without sentences": (LanguagePairError, "language_pairs", _with(language_pairs=["en-de", "en-it"])),
    "different lengths": (CorpusError, "sentences", _sentences(fr=SENTENCES["fr"][:3])),
    "different lengths outside the pairs": (CorpusError, "sentences", _sentences(it=["Piove."])),
    "empty sentence": (CorpusError, "sentences", _sentences(fr=[*SENTENCES["fr"][:3], ""])),
    "blank sentence": (CorpusError, "sentences", _sentences(fr=[*SENTENCES["fr"][:3], " \n"])),
    "sentence not a string": (CorpusError, "sentences", _sentences(fr=[*SENTENCES["fr"][:3], None])),
    "string for a list": (CorpusError, "sentences", _sentences(fr="Nous")),
    "no sentences": (CorpusError, "sentences", _with(sentences={})),
    "no sentence": (CorpusError, "sentences", _with(sentences={language: [] for language in SENTENCES})),
    "num_layers 0": (DetectionError, "num_layers", _with(num_layers=0)),
    "num_layers too large": (DetectionError, "num_layers", _with(num_layers=5)),
    "num_layers a bool": (DetectionError, "num_layers", _with(num_layers=True)),
    "general_ratio 0": (DetectionError, "general_ratio", _with(general_ratio=0)),
    "general_ratio 1": (DetectionError, "general_ratio", _with(general_ratio=1)),
    "general_ratio -1": (DetectionError, "general_ratio", _with(general_ratio=-1)),
    "general_ratio a": (DetectionError, "general_ratio", _with(general_ratio="a")),
    "activation_statistic": (DetectionError, "activation_statistic", _with(activation_statistic="median")),
    "batch_size 0": (DetectionError, "batch_size", _with(batch_size=0)),
    "batch_size 1.5": (DetectionError, "batch_size", _with(batch_size=1.5)),
    "max_length 1": (DetectionError, "max_length", _with(max_length=1)),
}


def _refuse_to_run(model: nn.Module) -> None:
    def touched(*_: Any) -> None:
        raise AssertionError("the model ran")

    for module in model.modules():
        module.register_forward_pre_hook(touched)


@pytest.mark.parametrize("case", REFUSED)
def test_arguments_are_refused_before_the_model_is_touched(llama: nn.Module, tokenizer: Any, case: str) -> None:
    error, field, options = REFUSED[case]
    used(llama)
    _refuse_to_run(llama)
    before = state(llama)
    with pytest.raises(error) as caught:
        detect_neurons(llama, tokenizer, **options)
    assert type(caught.value) is error
    assert caught.value.field == field
    assert_unchanged(llama, before)


def test_a_single_language_is_refused(llama: nn.Module, tokenizer: Any) -> None:
    """Eq. 5 needs two; a pair has two, so that the pair without sentences is named first."""
    with pytest.raises(LanguagePairError, match=r"language_pairs='en-de': .*for 'de'"):
        detect_neurons(llama, tokenizer, {"en": SENTENCES["en"]}, ["en-de"])


def test_a_sentence_of_one_token_is_refused(llama: nn.Module) -> None:
    _refuse_to_run(llama)
    with pytest.raises(CorpusError, match="fewer than two tokens"):
        detect_neurons(llama, lambda _text: {"input_ids": [1]}, **OPTIONS)


def test_a_bool_is_no_batch_size(llama: nn.Module, tokenizer: Any) -> None:
    with pytest.raises(DetectionError, match="batch_size=True"):
        detect_neurons(llama, tokenizer, **_with(batch_size=True))


class _NoFFN(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.head = nn.Embedding(VOCABULARY, 8), nn.Linear(8, VOCABULARY)


def _adapted(config: Callable[..., Any], **options: Any) -> Callable[[], nn.Module]:
    return lambda: get_peft_model(build_model("llama"), config(task_type="CAUSAL_LM", **options))


UNFIT: list[Any] = [
    pytest.param(_adapted(LoraConfig), "adapters", id="LoRA"),
    pytest.param(
        _adapted(IA3Config, target_modules=["down_proj"], feedforward_modules=["down_proj"]), "adapters", id="IA3"
    ),
    pytest.param(_adapted(PromptTuningConfig, num_virtual_tokens=2), "adapters", id="prompt tuning"),
    pytest.param(_adapted(PrefixTuningConfig, num_virtual_tokens=2), "adapters", id="prefix tuning"),
    pytest.param(lambda: LlamaModel(build_model("llama").config), "language-model head", id="headless"),
    pytest.param(
        lambda: LlamaForSequenceClassification(build_model("llama").config), "language-model head", id="classifier"
    ),
    pytest.param(_NoFFN, "no FFN was recognised", id="no FFN"),
    pytest.param(lambda: build_model("llama").to("meta"), "load the weights", id="meta device"),
]


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore:.is_gradient_checkpointing.:FutureWarning")
@pytest.mark.parametrize(("make", "message"), UNFIT)
def test_models_are_refused_before_they_are_touched(
    make: Callable[[], nn.Module], message: str, tokenizer: Any
) -> None:
    model = make()
    before = {name: (id(p), p.requires_grad, p.grad) for name, p in model.named_parameters()}
    hooks = {(name, key): len(getattr(module, key)) for name, module in model.named_modules() for key in HOOKS}
    handles = [module.register_forward_pre_hook(_touched) for module in model.modules()]
    with pytest.raises(ArchitectureError, match=message) as caught:
        detect_neurons(model, tokenizer, **OPTIONS)
    assert caught.value.field == "model"
    for handle in handles:
        handle.remove()
    assert {name: (id(p), p.requires_grad, p.grad) for name, p in model.named_parameters()} == before
    assert hooks == {(name, key): len(getattr(m, key)) for name, m in model.named_modules() for key in HOOKS}


def _touched(*_: Any) -> None:
    raise AssertionError("the model ran")


def test_an_ffn_that_does_not_run_is_named(llama: nn.Module, tokenizer: Any) -> None:
    """A vision tower, or an expert no token went to: its neurons cannot be measured."""
    llama.tower = copy.deepcopy(llama.model.layers[0].mlp)
    used(llama)
    before = state(llama)
    with pytest.raises(ArchitectureError, match=r"model='tower': .*'down_proj'"):
        detect_neurons(llama, tokenizer, **OPTIONS)
    assert_unchanged(llama, before)
