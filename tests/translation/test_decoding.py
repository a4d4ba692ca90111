"""Translating: order, ends of sentences, modes, and routing by language pair."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from tokenizers import decoders
from torch import nn
from transformers import LogitsProcessor, LogitsProcessorList, PreTrainedModel, PreTrainedTokenizerFast

from peft_landermt import LanderConfig, NeuronMap, translate
from peft_landermt.errors import ConfigError, CorpusError, LanguagePairError
from peft_landermt.translation.decoding import translate_counted

from ..conftest import PAIRS, SENTENCES, build_model, randomize_adapter
from ..tuner.helpers import adapt, make_config

EOS = 2
MIXED_LENGTHS = ["We drink tea.", "It", "Where is the old station, please?", "Rain again", "tea", "The house is old."]


@pytest.fixture
def architecture() -> str:
    return "llama"


class Scripted(LogitsProcessor):
    """Makes the rows of a batch say given texts, and counts the steps; "$" is the end-of-sentence token."""

    def __init__(self, tokenizer: Any, texts: Sequence[str]) -> None:
        vocabulary = {**tokenizer.get_vocab(), "$": EOS}
        self.ids = [[vocabulary[character] for character in text] for text in texts]
        self.steps = 0

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        forced = torch.full_like(scores, -torch.inf)
        for row, ids in enumerate(self.ids):
            forced[row, ids[min(self.steps, len(ids) - 1)]] = 0
        self.steps += 1
        return forced


def without_spaces(tokenizer: Any) -> Any:
    """The character tokenizer, but decoding puts no spaces between characters."""
    own = copy.deepcopy(tokenizer)
    own.backend_tokenizer.decoder = decoders.Fuse()
    return own


def say(tokenizer: Any, texts: Sequence[str], **options: Any) -> tuple[list[str], int, int]:
    """Translations of as many sentences, number of runaways and of steps, where the model says `texts`."""
    script = Scripted(tokenizer, texts)
    tokenizer = without_spaces(tokenizer)
    sources = ["a" * (index + 1) for index in range(len(texts))]
    result = translate_counted(
        build_model("llama"), tokenizer, sources, "en-de", logits_processor=LogitsProcessorList([script]), **options
    )
    return result.texts, result.num_runaway, script.steps


# Order and batches


@pytest.mark.parametrize("batch_size", [1, 2, 4, 16])
def test_order_and_text_do_not_depend_on_the_batch_size(tokenizer: PreTrainedTokenizerFast, batch_size: int) -> None:
    model = build_model("llama")
    alone = [translate(model, tokenizer, [text], "en-de", max_new_tokens=12)[0] for text in MIXED_LENGTHS]
    assert len(set(alone)) == len(alone)
    assert translate(model, tokenizer, MIXED_LENGTHS, "en-de", batch_size, max_new_tokens=12) == alone
    reverse = MIXED_LENGTHS[::-1]
    assert translate(model, tokenizer, reverse, "en-de", batch_size, max_new_tokens=12) == alone[::-1]


@pytest.mark.parametrize("batch_size", [2, 16])
def test_a_pair_for_each_sentence(
    base: PreTrainedModel, neuron_map: NeuronMap, tokenizer: PreTrainedTokenizerFast, batch_size: int
) -> None:
    model = adapt(base, neuron_map)
    sentences = ["We drink tea.", "", "We drink tea.", "Das Haus", "We drink tea.", "Where is it?"]
    pairs = ["en-de", "en-de", "en-fr", "de-en", "en-de", "en-fr"]
    expected = [
        translate(model, tokenizer, [text], pair, max_new_tokens=12)[0]
        for text, pair in zip(sentences, pairs, strict=True)
    ]
    assert expected[0] != expected[2]
    assert translate(model, tokenizer, sentences, pairs, batch_size, max_new_tokens=12) == expected


@pytest.mark.parametrize("batch_size", [2, 16])
def test_an_adapter_for_each_sentence(
    base: PreTrainedModel, neuron_map: NeuronMap, tokenizer: PreTrainedTokenizerFast, batch_size: int
) -> None:
    """Pair adapters that were loaded side by side, and the base, in one batch."""
    model = adapt(base, neuron_map, ["en-de"], adapter_name="first")
    model.add_adapter("second", make_config(neuron_map, ["en-de", "en-fr"]))
    model.base_model.set_adapter("second")
    randomize_adapter(model, seed=5)
    model.base_model.set_adapter("first")
    sentences = ["We drink tea.", "It", "We drink tea.", "We drink tea.", "We drink tea."]
    pairs = ["en-de", "en-fr", "en-de", "en-fr", "en-de"]
    names = ["first", "second", "second", "second", "__base__"]
    expected = []
    for text, pair, name in zip(sentences, pairs, names, strict=True):
        if name == "__base__":
            with model.disable_adapter():
                expected += translate(model, tokenizer, [text], "en-de", max_new_tokens=12)
        else:
            model.set_adapter(name)
            expected += translate(model, tokenizer, [text], pair, max_new_tokens=12)
    model.set_adapter("first")
    assert len({expected[0], expected[2], expected[3], expected[4]}) == 4
    options = {"adapter_names": names, "max_new_tokens": 12}
    assert translate(model, tokenizer, sentences, pairs, batch_size, **options) == expected
    with pytest.raises(CorpusError, match="adapter_names=1: need one for each of the 5"):
        translate(model, tokenizer, sentences, pairs, adapter_names=["first"])


@pytest.mark.parametrize("pairs", [[], ["en-de"], ["en-de"] * 3])
def test_one_pair_too_many_or_too_few(tokenizer: PreTrainedTokenizerFast, pairs: list[str]) -> None:
    with pytest.raises(CorpusError, match=f"language_pair={len(pairs)}: need one for each of the 2 sentences"):
        translate(build_model("llama"), tokenizer, ["one", "two"], pairs)


def test_no_room_for_a_translation(tokenizer: PreTrainedTokenizerFast) -> None:
    """0 is not taken for the default; transformers refuses it."""
    with pytest.raises(ValueError, match="max_new_tokens"):
        translate(build_model("llama"), tokenizer, ["one"], "en-de", max_new_tokens=0)


def test_empty_sentences_give_empty_translations(tokenizer: PreTrainedTokenizerFast) -> None:
    model = build_model("llama")
    sentences = ["", "We drink tea.", " \t\n", "It rained."]
    texts = translate(model, tokenizer, sentences, "en-de", max_new_tokens=12)
    assert [bool(text) for text in texts] == [False, True, False, True]
    assert texts[1::2] == translate(model, tokenizer, sentences[1::2], "en-de", max_new_tokens=12)
    assert translate(model, tokenizer, [], "en-de") == []
    assert translate(model, tokenizer, ["", " "], "en-de") == ["", ""]


def test_whitespace_in_a_source_is_one_space(tokenizer: PreTrainedTokenizerFast) -> None:
    model = build_model("llama")
    first, second = ([text] for text in ("We drink tea.", "  We\ndrink \t tea.\n"))
    assert translate(model, tokenizer, first, "en-de") == translate(model, tokenizer, second, "en-de")


def test_prompt_is_the_template_filled(tokenizer: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch) -> None:
    model = build_model("llama")
    seen: list[dict[str, Any]] = []

    def generate(**options: Any) -> torch.Tensor:
        seen.append(options)
        return torch.cat([options["input_ids"], torch.full((len(options["input_ids"]), 1), EOS)], dim=1)

    monkeypatch.setattr(model, "generate", generate)
    template = "{source_language} {target_language} {source}"
    tokenizer = without_spaces(tokenizer)
    assert translate(model, tokenizer, ["tea", "a"], "en-de", template=template, num_beams=3) == ["", ""]
    (options,) = seen
    # shorter sentences first, padded on the left with <pad> = 0 behind a mask of 0
    assert options["input_ids"][0, :2].tolist() == [0, 0]
    assert tokenizer.batch_decode(options["input_ids"], skip_special_tokens=True) == [
        "English German a",
        "English German tea",
    ]
    assert options["attention_mask"].tolist() == [[0, 0] + [1] * 17, [1] * 19]  # <bos>, and 16 or 18 characters
    # 1.5 bytes of German for each of 32 letters, and twice for those of the longest source
    assert options["max_new_tokens"] == 1.5 * (32 + 2 * 3)
    assert (options["num_beams"], options["do_sample"]) == (3, False)
    assert "language_pairs" not in options


@pytest.mark.parametrize("options", [{"num_beams": 3}, {"do_sample": True, "temperature": 2.0}], ids=str)
def test_generation_options_reach_generate(tokenizer: PreTrainedTokenizerFast, options: dict[str, Any]) -> None:
    model = build_model("llama")
    greedy = translate(model, tokenizer, SENTENCES["en"], "en-de", max_new_tokens=12)
    torch.manual_seed(0)
    other = translate(model, tokenizer, SENTENCES["en"], "en-de", max_new_tokens=12, **options)
    assert len(other) == 4 and other != greedy


# Ends of sentences


@pytest.mark.parametrize(
    ("said", "text", "steps"),
    [
        (" Das Haus.$xx", "Das Haus.", 11),
        (" Das Haus.\nxx", "Das Haus.", 11),
        ("$", "", 1),
        ("\nDas.\nxx", "Das.", 6),
        (" \n \nDas.$", "Das.", 9),
        ("Das.  $", "Das.", 7),
    ],
)
def test_stops_at_eos_or_line_end(tokenizer: PreTrainedTokenizerFast, said: str, text: str, steps: int) -> None:
    """One step for each character up to the end; the limit would be 40."""
    assert say(tokenizer, [said], max_new_tokens=40) == ([text], 0, steps)


def test_a_row_that_ended_waits_for_the_others(tokenizer: PreTrainedTokenizerFast) -> None:
    texts, runaway, steps = say(tokenizer, ["ab$zzzzzzz", "cd\nyyyyyyy", "efghijk$"], max_new_tokens=40)
    assert (texts, runaway, steps) == (["ab", "cd", "efghijk"], 0, 8)


@pytest.mark.parametrize("pad", ["<pad>", None])
def test_runaways_are_counted(tokenizer: PreTrainedTokenizerFast, pad: str | None) -> None:
    own = copy.deepcopy(tokenizer)
    own.pad_token = pad
    texts, runaway, steps = say(own, ["ab$zzz", "cd\nyyy", "efghij", "klmno$", "pqrst\n"], max_new_tokens=6)
    # the end of the last two just fits into 6 tokens
    assert (texts, runaway, steps) == (["ab", "cd", "efghij", "klmno", "pqrst"], 1, 6)


def test_line_ends_before_any_text_are_no_end(tokenizer: PreTrainedTokenizerFast) -> None:
    texts, runaway, steps = say(tokenizer, ["\nab\nzz", "\n\n\n\n\n\n", "efghij"], max_new_tokens=6)
    assert (texts, runaway, steps) == (["ab", "", "efghij"], 2, 6)


def test_other_ends_of_the_model_are_no_runaway(tokenizer: PreTrainedTokenizerFast) -> None:
    """Chat models have several end tokens; the tokenizer names one."""
    dot = tokenizer.get_vocab()["."]
    texts, runaway, steps = say(tokenizer, ["ab.zzz", "efghij"], max_new_tokens=6, eos_token_id=[EOS, dot])
    assert (texts, runaway, steps) == (["ab.", "efghij"], 1, 6)


def test_default_limit_grows_with_the_source(tokenizer: PreTrainedTokenizerFast) -> None:
    # twice the 2 tokens of "a" with <bos>, plus 16
    assert say(tokenizer, ["x" * 50]) == (["x" * 20], 1, 20)


def test_ends_within_beams(tokenizer: PreTrainedTokenizerFast) -> None:
    model = build_model("llama")
    texts = translate(model, tokenizer, MIXED_LENGTHS, "en-de", num_beams=3, max_new_tokens=12)
    assert any(texts) and not any("\n" in text for text in texts)


# Models


def modes(model: nn.Module) -> list[bool]:
    return [module.training for module in model.modules()]


@pytest.mark.parametrize("fails", [False, True])
def test_mode_of_every_module_is_restored(
    tokenizer: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch, fails: bool
) -> None:
    model = build_model("llama").train()
    model.model.layers[1].eval()
    before, seen = modes(model), []

    def generate(**options: Any) -> torch.Tensor:
        seen.extend(modes(model))
        if fails:
            raise RuntimeError("generation failed")
        return options["input_ids"]

    monkeypatch.setattr(model, "generate", generate)
    if fails:
        with pytest.raises(RuntimeError, match="generation failed"):
            translate(model, tokenizer, ["a"], "en-de")
    else:
        translate(model, tokenizer, ["a"], "en-de")
    assert seen and not any(seen)
    assert modes(model) == before
    assert len(set(before)) == 2


def test_no_gradients_and_no_changes(
    base: PreTrainedModel, neuron_map: NeuronMap, tokenizer: PreTrainedTokenizerFast
) -> None:
    model = adapt(base, neuron_map)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    first = translate(model, tokenizer, SENTENCES["en"], "en-de", max_new_tokens=8)
    assert translate(model, tokenizer, SENTENCES["en"], "en-de", max_new_tokens=8) == first
    assert all(value.equal(before[key]) for key, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())


def lander(base: PreTrainedModel, neuron_map: NeuronMap) -> Any:
    return adapt(base, neuron_map)


def lander_without_pairs(base: PreTrainedModel, neuron_map: NeuronMap) -> Any:
    return adapt(base)


def lora(base: PreTrainedModel, neuron_map: NeuronMap) -> Any:
    model = get_peft_model(base, LoraConfig(task_type="CAUSAL_LM", target_modules=["q_proj", "down_proj"]))
    randomize_adapter(model, std=0.3)
    return model.eval()


def plain(base: PreTrainedModel, neuron_map: NeuronMap) -> Any:
    return base


@pytest.mark.parametrize("make", [lander, lander_without_pairs, lora, plain])
def test_only_lander_models_with_pairs_are_routed(
    base: PreTrainedModel,
    neuron_map: NeuronMap,
    tokenizer: PreTrainedTokenizerFast,
    monkeypatch: pytest.MonkeyPatch,
    make: Callable[..., Any],
) -> None:
    untouched = translate(base, tokenizer, SENTENCES["en"], "en-de", max_new_tokens=8)
    model = make(base, neuron_map)
    real, seen = model.generate, []

    def generate(**options: Any) -> torch.Tensor:
        seen.append(options.get("language_pairs"))
        return real(**options)

    monkeypatch.setattr(model, "generate", generate)
    texts = translate(model, tokenizer, SENTENCES["en"], "en-de", batch_size=3, max_new_tokens=8)
    assert seen == ([["en-de"] * 3, ["en-de"]] if make is lander else [None, None])
    assert (texts == untouched) == (make is plain)


def test_routes_by_the_pair(base: PreTrainedModel, neuron_map: NeuronMap, tokenizer: PreTrainedTokenizerFast) -> None:
    """One adapter of three pairs translates as three adapters of one pair each, whatever pair was chosen before."""
    model = adapt(copy.deepcopy(base), neuron_map)
    model.set_language_pair("de-en")
    together = {pair: translate(model, tokenizer, MIXED_LENGTHS, pair, max_new_tokens=8) for pair in PAIRS}
    template = "{source}"  # so that only the route tells the pairs apart
    routed = {pair: translate(model, tokenizer, MIXED_LENGTHS, pair, 4, 8, template) for pair in PAIRS}
    assert routed["en-de"] != routed["en-fr"]
    for pair in PAIRS:
        model.set_language_pair(pair)
        model.merge_adapter()
        assert translate(model, tokenizer, MIXED_LENGTHS, pair, max_new_tokens=8) == together[pair]
        assert translate(model, tokenizer, MIXED_LENGTHS, pair, 4, 8, template) == routed[pair]
        model.unmerge_adapter()


@pytest.mark.parametrize("pairs", [PAIRS, ["en-de"]], ids=len)
@pytest.mark.parametrize("pair", ["fr-en", "en-it"])
def test_pair_that_the_adapter_does_not_hold(
    base: PreTrainedModel, neuron_map: NeuronMap, tokenizer: PreTrainedTokenizerFast, pairs: list[str], pair: str
) -> None:
    model = adapt(base, neuron_map, pairs)
    with pytest.raises(LanguagePairError, match=f"'{pair}': adapter 'default' holds {', '.join(pairs)}"):
        translate(model, tokenizer, ["tea"], pair)


@pytest.mark.parametrize("pair", ["en", "en_de", "english-german", "en-en", "", None])
def test_malformed_pairs(tokenizer: PreTrainedTokenizerFast, pair: Any) -> None:
    with pytest.raises(LanguagePairError, match="language_pair="):
        translate(build_model("llama"), tokenizer, ["tea"], pair)


def test_sentences_as_a_string(tokenizer: PreTrainedTokenizerFast) -> None:
    with pytest.raises(CorpusError, match=r"expected a list of sentences: \['We drink tea.'\]"):
        translate(build_model("llama"), tokenizer, "We drink tea.", "en-de")


@pytest.mark.parametrize("batch_size", [0, -1, 1.5])
def test_batch_size(tokenizer: PreTrainedTokenizerFast, batch_size: Any) -> None:
    with pytest.raises(CorpusError, match="batch_size"):
        translate(build_model("llama"), tokenizer, ["tea"], "en-de", batch_size)


@pytest.mark.parametrize(
    ("name", "value"),
    [("num_beams", 0), ("num_beams", 1.5), ("num_return_sequences", 2), ("return_dict_in_generate", True)],
)
def test_generation_options_that_give_no_lines(tokenizer: PreTrainedTokenizerFast, name: str, value: Any) -> None:
    with pytest.raises(ConfigError, match=f"{name}={value}"):
        translate(build_model("llama"), tokenizer, ["tea"], "en-de", **{"num_beams": 2, name: value})


@pytest.mark.parametrize("side", ["left", "right"])
def test_tokenizer_is_left_as_it_is(tokenizer: PreTrainedTokenizerFast, side: str) -> None:
    own = copy.deepcopy(tokenizer)
    own.padding_side = side
    before = repr(own), own.backend_tokenizer.to_str()
    model = build_model("llama")
    texts = translate(model, own, MIXED_LENGTHS, "en-de", max_new_tokens=8)
    assert (repr(own), own.backend_tokenizer.to_str()) == before
    assert texts == translate(model, tokenizer, MIXED_LENGTHS, "en-de", max_new_tokens=8)


def test_progress(tokenizer: PreTrainedTokenizerFast, capsys: pytest.CaptureFixture[str]) -> None:
    model = build_model("llama")
    translate(model, tokenizer, ["tea", ""], "en-de", max_new_tokens=2)
    assert "Translating" not in capsys.readouterr().err
    translate(model, tokenizer, ["tea", ""], "en-de", max_new_tokens=2, progress=True)
    assert "Translating en-de: 100%" in capsys.readouterr().err


# Models that serve other pairs than the one that is asked for


@pytest.fixture
def pairs_adapter(base: PreTrainedModel, neuron_map: NeuronMap) -> Any:
    """An adapter of all pairs whose translations differ by pair."""
    return adapt(base, neuron_map, PAIRS)


def test_a_merged_model_translates_its_pair_only(pairs_adapter: Any, tokenizer: PreTrainedTokenizerFast) -> None:
    model, text = pairs_adapter, ["We drink tea."]
    expected = translate(model, tokenizer, text, "en-fr", max_new_tokens=8)
    model.set_language_pair("en-fr")
    model.merge_adapter()
    assert translate(model, tokenizer, text, "en-fr", max_new_tokens=8) == expected
    for pair in ("en-de", "nl-pl"):
        with pytest.raises(LanguagePairError, match=rf"language_pair='{pair}'.*merged for en-fr"):
            translate(model, tokenizer, text, pair, max_new_tokens=8)


def test_named_adapters_route_whatever_is_active(
    base: PreTrainedModel, neuron_map: NeuronMap, tokenizer: PreTrainedTokenizerFast
) -> None:
    model = adapt(base, adapter_name="plain", layers_to_transform=[0])
    model.add_adapter("pairs", make_config(neuron_map, PAIRS))
    model.set_adapter("pairs")
    randomize_adapter(model, seed=7)
    text, options = SENTENCES["en"][:3], {"max_new_tokens": 8}
    expected = [
        translate(model, tokenizer, [sentence], pair, **options)[0] for sentence, pair in zip(text, PAIRS, strict=True)
    ]
    model.set_adapter("plain")
    plain = translate(model, tokenizer, text[:1], "en-de", **options)
    assert translate(model, tokenizer, text, PAIRS, adapter_names=["pairs"] * 3, **options) == expected
    mixed = translate(
        model, tokenizer, [text[0], *text], ["en-de", *PAIRS], adapter_names=["plain"] + ["pairs"] * 3, **options
    )
    assert mixed == plain + expected
    with pytest.raises(LanguagePairError, match="'nl-pl'"):
        translate(model, tokenizer, text[:1], "nl-pl", adapter_names=["pairs"], **options)


def test_several_active_adapters_serve_their_pairs(
    base: PreTrainedModel, neuron_map: NeuronMap, tokenizer: PreTrainedTokenizerFast
) -> None:
    model = adapt(base, neuron_map, ["en-de"], adapter_name="first")
    model.add_adapter("second", make_config(neuron_map, ["en-fr"]))
    model.base_model.set_adapter(["first", "second"])
    for pair in ("en-de", "en-fr"):
        translate(model, tokenizer, ["tea"], pair, max_new_tokens=2)
    with pytest.raises(LanguagePairError, match=r"'de-en'.*together serve en-de, en-fr"):
        translate(model, tokenizer, ["tea"], "de-en", max_new_tokens=2)


def test_one_pair_needs_no_task_type(
    base: PreTrainedModel, neuron_map: NeuronMap, tokenizer: PreTrainedTokenizerFast
) -> None:
    model = get_peft_model(base, LanderConfig(neuron_map=neuron_map, language_pairs=["en-de"]))
    assert len(translate(model, tokenizer, ["tea"], "en-de", max_new_tokens=2)) == 1
    with pytest.raises(LanguagePairError, match="'en-fr'"):
        translate(model, tokenizer, ["tea"], "en-fr", max_new_tokens=2)


def test_switched_off_adapters_route_nothing(pairs_adapter: Any, tokenizer: PreTrainedTokenizerFast) -> None:
    with pairs_adapter.disable_adapter():
        assert len(translate(pairs_adapter, tokenizer, ["tea"], "nl-pl", max_new_tokens=2)) == 1
