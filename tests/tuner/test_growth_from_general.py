"""Blocks that begin as copies of general components, and stand in their place: `init_from="general"`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel

from peft_landermt import (
    LanderConfig,
    add_language_pairs,
    compose_language_pair,
    export_lora,
    join_adapters,
    remove_language_pairs,
    split_adapter,
)
from peft_landermt.errors import AdapterError, ConfigError
from peft_landermt.lander.layer import LanderFFN
from peft_landermt.lander.shared import LanderAttention

from ..conftest import PAIRS, randomize_adapter
from .growing import ITALIAN, SPANISH, adapted, base, grow, holds, maps, of_pairs, same, saved
from .helpers import ids, logits
from .test_attention import FORMS

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")

FIRST: dict[str, Any] = {
    "general_rank": 3,
    "specific_rank": 2,
    "attention_modules": ["q", "v", "o"],
    "attention_rank": 3,
}
FORM: dict[str, Any] = {"specific_rank": 2, "attention_rank": 2}
CASES: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    **{name: (name, FIRST, FORM) for name in FORMS},
    "all components": ("Gemma 3", {**FIRST, "general_rank": 2, "attention_rank": 2}, FORM),
    "more components": ("Gemma 3", {**FIRST, "general_rank": 1, "attention_rank": 1}, FORM),
    "gates": ("Gemma 3", {**FIRST, "car": "paper", "inactive_neurons": "drop"}, FORM),
    "tune=general": ("Gemma 3", {**FIRST, "tune": "general"}, FORM),
    "general output projections": ("Gemma 3", {**FIRST, "projections": "output"}, FORM),
    "new output projections": ("Gemma 3", FIRST, {**FORM, "projections": "output", "attention_modules": ["v", "k"]}),
    "no attention": ("Gemma 3", {**FIRST, "attention_modules": None}, {**FORM, "attention_modules": None}),
}
FEW = ("Gemma 3", "Phi-3", "GPT-2", "T5")
PARAMS = [pytest.param(case, marks=[pytest.mark.slow] * (case in FORMS and case not in FEW)) for case in CASES]
SUMS = [param for param in PARAMS if param.values != ("gates",)]
"""Those whose weights are a sum, which no gate scales."""


@pytest.fixture(params=PARAMS)
def case(request: pytest.FixtureRequest) -> str:
    return request.param


def begun(case: str) -> PeftModel:
    """An adapter of `PAIRS`, to which Italian was added as copies of general components, before it learns."""
    name, options, form = CASES[case]
    model = adapted(name, **options)
    add_language_pairs(model, maps(name)[1], ITALIAN, init_from="general", **form)
    return model


def learned(case: str) -> PeftModel:
    """The same with random values in place of copies, then with Spanish."""
    name, _, form = CASES[case]
    model = begun(case)
    randomize_adapter(model, seed=5)
    grow(model, maps(name)[2], SPANISH, seed=6, init_from="general", **form)
    return model


def test_a_new_pair_begins_with_what_the_general_block_does(case: str) -> None:
    """So the copies add nothing, and take nothing away; what earlier pairs compute is the same bit for bit."""
    name, options, form = CASES[case]
    anew = adapted(name, **options)
    tensors, expected = saved(anew), of_pairs(anew, PAIRS)
    add_language_pairs(anew, maps(name)[1], ITALIAN, **form)
    model = begun(case)
    assert holds(saved(model), tensors) and same(expected, of_pairs(model, PAIRS))
    for pair in ITALIAN:
        begins, as_general = (logits(each, ids(), language_pairs=[pair] * 3) for each in (model, anew))
        torch.testing.assert_close(begins, as_general, atol=2e-5, rtol=2e-5)
    copied = {key: value for key, value in saved(model).items() if ".it_" in key and "neurons" not in key}
    assert any(not value.equal(saved(anew)[key]) for key, value in copied.items())
    randomize_adapter(model, seed=5)
    assert holds(saved(model), tensors) and same(expected, of_pairs(model, PAIRS)), "no memory is shared"


@pytest.mark.parametrize("case", SUMS)
def test_weights_are_those_of_the_components_and_of_what_stands_in_their_place(case: str) -> None:
    """By hand, for a pair of one added language and for one of two, where general components are subtracted once."""
    name, _, _ = CASES[case]
    model = learned(case)
    compose_language_pair(model, "it-es")
    plain = {key: value for key, value in base(name).named_parameters()}
    found = {pair: merged(model, pair) for pair in ("en-it", "it-es")}
    checked = 0
    for path, layer in model.get_base_model().named_modules():
        if not isinstance(layer, (LanderFFN, LanderAttention)) or not layer.holds("default"):
            continue
        blocks = layer.blocks("default")
        for pair, weights in found.items():
            if blocks.concerns(pair):
                for key, delta in by_hand(layer, pair).items():
                    weight = f"{path}.{key}.weight".replace(".base_layer", "")
                    expected = plain[weight].double() + (delta if layer_is_plain(layer, key) else delta.t())
                    torch.testing.assert_close(weights[weight].double(), expected, atol=1e-4, rtol=1e-4)
                    checked += 1
    assert checked


def merged(model: PeftModel, pair: str) -> dict[str, torch.Tensor]:
    """The weights of the base with a pair merged, by their names in the base."""
    model.set_language_pair(pair)
    model.merge_adapter()
    found = {key.replace(".base_layer", ""): value.clone() for key, value in model.get_base_model().named_parameters()}
    model.unmerge_adapter()
    return found


def layer_is_plain(layer: LanderFFN | LanderAttention, key: str) -> bool:
    return type(layer.get_submodule(f"base_layer.{key}").base_layer).__name__ != "Conv1D"


def by_hand(layer: LanderFFN | LanderAttention, pair: str) -> dict[str, torch.Tensor]:
    """ΔW (out, in) of every linear layer of one: sums over blocks of B A, general components by their weights."""
    blocks, layout = layer.blocks("default"), layer.blocks("default").layout
    spoken = [language for language in pair.split("-") if language in ("en", "it", "es")]
    found: dict[str, torch.Tensor] = {}
    if isinstance(layer, LanderFFN):
        for projection, parts in blocks.projections.items():
            tuned = blocks.tuned_on[projection]
            total = torch.zeros(layout.neurons * parts, layout.width, dtype=torch.float64)
            for block in tuned:
                if block == "general" or block in spoken:
                    down, up = (factor.double() for factor in blocks.factors(block, projection))
                    total[blocks.places(block, parts)] += (up * shares(blocks, block, tuned, spoken)) @ down
            found[projection] = total.t() if projection == blocks.output else total
        return found
    for block, roles in blocks.roles.items():
        for role in roles if block == "general" or block in spoken else ():
            tuned = [each for each in blocks.roles if role in blocks.roles[each]]
            down, up = (factor.double() for factor in blocks.factors(role, block))
            key, rows = layer.attention.projection(role), layer.attention.rows(role)
            size = layer.get_submodule(f"base_layer.{key}").out_features
            total = found.setdefault(key, torch.zeros(size, down.shape[1], dtype=torch.float64))
            total[slice(None) if rows is None else rows] += (up * shares(blocks, block, tuned, spoken)) @ down
    return found


def shares(blocks: Any, block: str, tuned: Any, spoken: list[str]) -> torch.Tensor:
    ones = torch.ones(blocks.ranks[block], dtype=torch.float64)
    for language in set(spoken) & {"it", "es"} & set(tuned) if block == "general" else ():
        ones[: blocks.ranks[language]] -= 1
    return ones


def test_a_mixed_batch_equals_each_sample_alone(case: str) -> None:
    model = learned(case)
    compose_language_pair(model, "it-es", neuron_map=maps(CASES[case][0])[2])
    for pairs in (["en-de", "en-it", "it-es"], ["en-it", "it-en", "es-de"]):
        mixed = logits(model, ids(), language_pairs=pairs)
        for row, pair in enumerate(pairs):
            alone = logits(model, ids()[row : row + 1], language_pairs=[pair])
            torch.testing.assert_close(mixed[row : row + 1], alone, atol=2e-5, rtol=2e-5)


def test_only_the_copies_learn(case: str) -> None:
    model = begun(case).train()
    model(input_ids=ids(), labels=ids(), language_pairs=["en-it", "it-en", "en-it"]).loss.backward()
    given = {key: value.grad for key, value in model.named_parameters() if value.grad is not None}
    assert given and all(".it_" in key for key in given)
    both = {key[-1] for key, grad in given.items() if grad.abs().sum() > 0}
    assert both == {"A", "B"}, "both factors of a copy have a gradient from the first step"


def test_saved_split_joined_and_taken_out(tmp_path: Path) -> None:
    model = learned("Gemma 3")
    compose_language_pair(model, "it-es")
    pairs = [*PAIRS, *ITALIAN, *SPANISH, "it-es"]
    expected = of_pairs(model, pairs)
    model.save_pretrained(tmp_path / "whole")
    loaded = PeftModel.from_pretrained(base("Gemma 3"), str(tmp_path / "whole")).eval()
    assert same(expected, of_pairs(loaded, pairs)) and loaded.peft_config["default"].format_version == 4
    folders = split_adapter(loaded, tmp_path / "parts")
    versions = {pair: LanderConfig.from_pretrained(str(folder)).format_version for pair, folder in folders.items()}
    assert versions["en-de"] == 2 and versions["en-it"] == versions["es-de"] == 4
    joined = join_adapters(base("Gemma 3"), [folders[pair] for pair in pairs]).eval()
    assert same(expected, of_pairs(joined, pairs))
    assert joined.peft_config["default"].additions == loaded.peft_config["default"].additions
    remove_language_pairs(loaded, [*SPANISH, "it-es"])
    assert same({pair: expected[pair] for pair in (*PAIRS, *ITALIAN)}, of_pairs(loaded, [*PAIRS, *ITALIAN]))


def test_a_plain_lora_adapter_computes_the_same(tmp_path: Path) -> None:
    model = learned("Gemma 3")
    for pair in ("en-de", "en-it"):
        expected = logits(model, ids(), language_pairs=[pair] * 3)
        plain = PeftModel.from_pretrained(base("Gemma 3"), str(export_lora(model, tmp_path / pair, pair))).eval()
        torch.testing.assert_close(logits(plain, ids()), expected, atol=2e-5, rtol=2e-5)


def test_what_begins_as_such_a_block_stands_where_it_does() -> None:
    model = begun("Gemma 3")
    randomize_adapter(model, seed=5)
    expected = logits(model, ids(), language_pairs=["en-it"] * 3)
    add_language_pairs(model, maps("Gemma 3")[2], ["en-es"], init_from="it", **FORM)
    assert [addition["replaces_general"] for addition in model.peft_config["default"].additions] == [True, True]
    assert logits(model, ids(), language_pairs=["en-it"] * 3).equal(expected)
    here = [layer.blocks("default") for layer in model.modules() if isinstance(layer, LanderFFN)]
    assert all(blocks.layout.form("es").replaces_general for blocks in here if "es" in blocks.layout.specific)


def test_joining_says_that_one_stands_in_the_place_of_the_general_block(tmp_path: Path) -> None:
    folders = []
    for start in ("general", None):
        model = adapted("Gemma 3")
        grow(model, maps("Gemma 3")[1], ITALIAN, init_from=start)
        folders.append(split_adapter(model, tmp_path / str(start)))
    with pytest.raises(AdapterError, match="it was added with another replaces_general"):
        join_adapters(base("Gemma 3"), [folders[0]["en-it"], folders[1]["it-en"]])


@pytest.mark.parametrize(("field", "value"), [("rank", None), ("replaces_general", "yes")])
def test_damaged_configs(field: str, value: Any) -> None:
    config = begun("Gemma 3").peft_config["default"].to_dict()
    config["additions"] = [{**config["additions"][0], field: value}]
    with pytest.raises(ConfigError, match="specific_rank=None" if field == "rank" else field):
        LanderConfig(**{key: each for key, each in config.items() if key != "peft_type"})
