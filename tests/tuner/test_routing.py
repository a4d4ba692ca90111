"""Every way to name the pair or the adapter of a call, and of each of its samples."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from peft import PeftModel, get_peft_model
from transformers import PreTrainedModel

from peft_landermt import LanderConfig, NeuronMap
from peft_landermt.errors import LanguagePairError

from ..conftest import PAIRS, randomize_adapter
from .helpers import adapt, ids, logits, make_config, two_adapters

MIXED = ["en-de", "en-fr", "de-en", "en-de", "de-en"]
one_architecture = pytest.mark.parametrize("architecture", ["llama"], indirect=True)
close = {"atol": 1e-5, "rtol": 1e-5}


@pytest.mark.parametrize("options", [{}, {"car": "paper", "inactive_neurons": "drop"}, {"car": "learned"}], ids=str)
def test_rows_of_a_mixed_batch_equal_rows_alone(
    base: PreTrainedModel, neuron_map: NeuronMap, options: dict[str, Any]
) -> None:
    model = adapt(base, neuron_map, **options)
    batch = ids(len(MIXED))
    mixed = logits(model, batch, language_pairs=MIXED)
    for row, pair in enumerate(MIXED):
        alone = logits(model, batch[row : row + 1], language_pairs=[pair])
        torch.testing.assert_close(mixed[row : row + 1], alone, **close)
        model.set_language_pair(pair)
        torch.testing.assert_close(mixed[row : row + 1], logits(model, batch[row : row + 1]), **close)
    assert not torch.allclose(mixed[0], mixed[1], atol=1e-2)


@pytest.mark.parametrize("options", [{}, {"car": "paper", "inactive_neurons": "drop"}, {"car": "learned"}], ids=str)
def test_one_pair_needs_no_routing(base: PreTrainedModel, neuron_map: NeuronMap, options: dict[str, Any]) -> None:
    model = adapt(base, neuron_map, ["en-de"], **options)
    unrouted = logits(model, ids())
    torch.testing.assert_close(unrouted, logits(model, ids(), language_pairs=["en-de"] * 3), **close)
    model.set_language_pair("en-de")
    assert logits(model, ids()).equal(unrouted)


@one_architecture
def test_one_pair_of_several_equals_an_adapter_of_that_pair(base: PreTrainedModel, neuron_map: NeuronMap) -> None:
    """The blocks of a pair do not depend on which other pairs share the adapter."""
    several = adapt(base, neuron_map)
    state = {key.replace(".default", ""): value for key, value in several.state_dict().items()}
    expected = {pair: logits(several, ids(), language_pairs=[pair] * 3) for pair in PAIRS}
    for pair in PAIRS:
        one = adapt(several.unload(), neuron_map, [pair], adapter_name="one", seed=None)
        with torch.no_grad():
            for name, parameter in one.named_parameters():
                if ".one." in name:
                    parameter.copy_(state[name.replace(".one", "")])
        torch.testing.assert_close(logits(one, ids()), expected[pair], **close)
        several = one


@pytest.mark.parametrize("call", ["keyword", "positional"])
def test_model_without_a_task_type(base: PreTrainedModel, neuron_map: NeuronMap, call: str) -> None:
    """PEFT's plain PeftModel calls the base model itself."""
    model = get_peft_model(base, LanderConfig(neuron_map=neuron_map)).eval()
    randomize_adapter(model)
    assert type(model) is PeftModel
    tokens, keywords = ((ids(),), {}) if call == "positional" else ((), {"input_ids": ids()})
    mixed = model(*tokens, language_pairs=PAIRS, **keywords).logits
    for row, pair in enumerate(PAIRS):
        model.set_language_pair(pair)
        torch.testing.assert_close(mixed[row], logits(model, ids())[row], **close)


@one_architecture
def test_set_language_pair_and_none(base: PreTrainedModel, neuron_map: NeuronMap) -> None:
    model = adapt(base, neuron_map)
    by_keyword = {pair: logits(model, ids(), language_pairs=[pair] * 3) for pair in PAIRS}
    for pair in PAIRS:
        model.set_language_pair(pair)
        torch.testing.assert_close(logits(model, ids()), by_keyword[pair], **close)
    # the keyword comes first, and leaves the choice as it was
    torch.testing.assert_close(logits(model, ids(), language_pairs=["en-de"] * 3), by_keyword["en-de"], **close)
    torch.testing.assert_close(logits(model, ids()), by_keyword["en-fr"], **close)
    model.set_language_pair(None)
    with pytest.raises(LanguagePairError, match=r"holds en-de, de-en, en-fr; pass language_pairs=\[\.\.\.\]"):
        logits(model, ids())


@one_architecture
@pytest.mark.parametrize("pair", ["fr-en", "en-it", "nonsense"])
def test_set_language_pair_refuses_unknown_pairs(base: PreTrainedModel, neuron_map: NeuronMap, pair: str) -> None:
    model = adapt(base, neuron_map)
    model.set_language_pair("en-de")
    chosen = logits(model, ids())
    with pytest.raises(LanguagePairError, match=f"'{pair}': adapter 'default' holds en-de, de-en, en-fr"):
        model.set_language_pair(pair)
    assert logits(model, ids()).equal(chosen)


@one_architecture
@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["en-de", "de-en"], "each of the 3 samples"),
        (PAIRS * 2, "each of the 3 samples"),
        ("en-de", "'en-de': expected a list with one entry per sample"),
        (["en-de", "de-en", "fr-en"], "'fr-en': adapter 'default' holds en-de, de-en, en-fr"),
        (["en-de", "de-en", None], "None: adapter 'default' holds en-de, de-en, en-fr"),
        (None, r"holds en-de, de-en, en-fr; pass language_pairs=\[\.\.\.\]"),
    ],
)
@pytest.mark.parametrize("call", ["forward", "generate"])
def test_wrong_language_pairs(
    base: PreTrainedModel, neuron_map: NeuronMap, given: Any, message: str, call: str
) -> None:
    model = adapt(base, neuron_map)
    expected = logits(model, ids(), language_pairs=PAIRS)
    with pytest.raises(LanguagePairError, match=message):
        if call == "forward":
            model(input_ids=ids(), language_pairs=given)
        else:
            model.generate(input_ids=ids(), language_pairs=given, max_new_tokens=1)
    assert logits(model, ids(), language_pairs=PAIRS).equal(expected)  # an error leaves nothing behind


@one_architecture
@pytest.mark.parametrize("given", [[], ["en-de"], ["en-de", "de-en"]], ids=len)
@pytest.mark.parametrize("call", ["input_ids", "inputs_embeds", "generate"])
def test_divisor_of_the_batch_size_is_no_substitute_for_one_pair_per_sample(
    base: PreTrainedModel, neuron_map: NeuronMap, given: list[str], call: str
) -> None:
    """Two pairs for four samples must not be spread over them silently, and no pairs must not mean the base."""
    model = adapt(base, neuron_map)
    with pytest.raises(LanguagePairError, match="each of the 4 samples"):
        if call == "generate":
            model.generate(input_ids=ids(4), language_pairs=given, max_new_tokens=1)
        else:
            states = ids(4) if call == "input_ids" else model.get_input_embeddings()(ids(4))
            model(**{call: states}, language_pairs=given)


@one_architecture
@pytest.mark.parametrize("named", [{"language_pairs": []}, {"adapter_names": []}], ids=str)
def test_nothing_named_where_the_batch_size_cannot_be_told(
    base: PreTrainedModel, neuron_map: NeuronMap, named: dict[str, list[str]]
) -> None:
    """`generate` makes its first token itself; an empty list is refused before it does."""
    model = adapt(base, neuron_map)
    with pytest.raises(LanguagePairError, match=r"\[\]: give one entry for each sample"):
        model.generate(**named, max_new_tokens=1, bos_token_id=1)


@one_architecture
def test_pairs_of_an_adapter_without_pairs(base: PreTrainedModel) -> None:
    model = adapt(base)
    with pytest.raises(LanguagePairError, match="adapter 'default' was made without language pairs"):
        model(input_ids=ids(), language_pairs=PAIRS)
    with pytest.raises(LanguagePairError, match="adapter 'default' was made without language pairs"):
        model.set_language_pair("en-de")


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"general_rank": None},
        {"car": "paper", "inactive_neurons": "drop"},
        {"car": "learned"},
        {"car": "learned", "general_rank": None},
    ],
    ids=str,
)
@pytest.mark.filterwarnings("ignore:.*changes the model's output before any training")
def test_adapter_names_per_sample(base: PreTrainedModel, neuron_map: NeuronMap, options: dict[str, Any]) -> None:
    plain = logits(base, ids(4))
    model = two_adapters(base, neuron_map, **options)
    names = ["en-fr", "__base__", "en-de", "en-fr"]
    mixed = logits(model, ids(4), adapter_names=names)
    for row, name in enumerate(names):
        if name == "__base__":
            expected = plain
        else:
            model.set_adapter(name)
            expected = logits(model, ids(4))
            assert not torch.allclose(expected, plain, atol=1e-2)
        torch.testing.assert_close(mixed[row], expected[row], **close)
    torch.testing.assert_close(logits(model, ids(4), adapter_names=["__base__"] * 4), plain, **close)
    named = ["en-fr", "en-de", "en-de", "en-fr"]
    torch.testing.assert_close(
        logits(model, ids(4), adapter_names=named, language_pairs=named)[[0, 2, 3]], mixed[[0, 2, 3]], **close
    )


@one_architecture
def test_adapter_names_and_pairs_together(base: PreTrainedModel, neuron_map: NeuronMap) -> None:
    """One adapter of two pairs, one without any map, and the base, in one batch."""
    plain = logits(base, ids(4))
    model = adapt(base, neuron_map, ["en-de", "en-fr"], adapter_name="two")
    model.add_adapter("whole", make_config())
    model.set_adapter("whole")
    randomize_adapter(model, seed=2)
    whole = logits(model, ids(4))
    model.set_adapter("two")
    model.set_language_pair("en-fr")
    two = logits(model, ids(4))
    expected = torch.stack([two[0], whole[1], plain[2], two[3]])
    names = ["two", "whole", "__base__", "two"]
    torch.testing.assert_close(logits(model, ids(4), adapter_names=names), expected, **close)


@one_architecture
@pytest.mark.parametrize(
    ("keywords", "error", "message"),
    [
        (
            {"adapter_names": ["en-de", "xx", "yy"]},
            ValueError,
            r"Trying to infer with non-existing adapter\(s\): xx, yy",
        ),
        ({"adapter_names": ["en-de", "en-fr"]}, LanguagePairError, "each of the 3 samples"),
        ({"adapter_names": "en-de"}, LanguagePairError, "adapter_names='en-de': expected a list"),
        (
            {"adapter_names": ["en-de"] * 3, "language_pairs": ["en-de", "en-de", "en-fr"]},
            LanguagePairError,
            "'en-fr': adapter 'en-de' holds en-de",
        ),
        (
            {"adapter_names": ["en-de"] * 3, "language_pairs": ["en-de"] * 6},
            LanguagePairError,
            "language_pairs=6",
        ),
    ],
)
def test_wrong_adapter_names(
    base: PreTrainedModel, neuron_map: NeuronMap, keywords: dict[str, Any], error: type[Exception], message: str
) -> None:
    model = two_adapters(base, neuron_map)
    with pytest.raises(error, match=message):
        model(input_ids=ids(), **keywords)


@one_architecture
def test_padding_of_other_rows_does_not_matter(base: PreTrainedModel, neuron_map: NeuronMap) -> None:
    """Left padding, as in generation: a short sentence next to a long one of another pair."""
    model = adapt(base, neuron_map)
    batch, mask = ids(2), torch.ones(2, 8, dtype=torch.long)
    batch[0, :3], mask[0, :3] = 0, 0
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    mixed = logits(model, batch, attention_mask=mask, position_ids=positions, language_pairs=["en-fr", "de-en"])
    alone = logits(model, batch[:1, 3:], language_pairs=["en-fr"])
    torch.testing.assert_close(mixed[0, 3:], alone[0], **close)
