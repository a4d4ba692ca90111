"""Adapters that grow: what was there stays bit for bit, in every architecture and with every gate."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from transformers import PreTrainedModel

from peft_landermt import (
    LanderConfig,
    add_language_pairs,
    compose_language_pair,
    join_adapters,
    remove_language_pairs,
    split_adapter,
)
from peft_landermt.lander.layer import LanderFFN

from ..conftest import PAIRS, randomize_adapter
from .growing import GROWN, ITALIAN, SPANISH, adapted, base, grow, grown, holds, maps, of_pairs, same, saved
from .helpers import ids, logits
from .test_architectures import ARCHITECTURES
from .test_attention import FORMS

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")

NAMED = "named: xFormers' SwiGLU"
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    **{name: (name, {"specific_rank": 2, "attention_modules": ["v", "o"]}) for name in FORMS},
    "plain": ("Gemma 3", {}),
    "rows": ("BLOOM", {"general_rank": None}),
    "fused": ("Phi-3", {"projections": "input"}),
    "paper": ("Gemma 3", {"car": "paper", "inactive_neurons": "drop"}),
    "proportional": ("OPT", {"car": "proportional"}),
    "token": ("BLOOM", {"car": "token"}),
    "learned": ("GPT-2", {"car": "learned"}),
    "learned, drop": ("T5", {"car": "learned", "inactive_neurons": "drop"}),
    "tune=general": ("BLOOM", {"tune": "general"}),
    "tune=specific": ("Gemma 3", {"tune": "specific", "specific_rank": 3}),
    "tune=layers": ("BLOOM", {"tune": "layers", "car": "learned"}),
}
LONG = ("Falcon", "MPT", "Phi 2", "GPT-NeoX (Pythia)", "NLLB, M2M100")


FEW = ("T5", "plain", "fused", "paper", "token", "learned", "tune=layers")
"""One of every form; the others are split, joined and mixed with the slow tests."""


@pytest.fixture(params=[pytest.param(case, marks=pytest.mark.slow) if case in LONG else case for case in CASES])
def case(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(params=[case if case in FEW else pytest.param(case, marks=pytest.mark.slow) for case in CASES])
def form(request: pytest.FixtureRequest) -> str:
    return request.param


def test_old_pairs_stay_bit_for_bit(case: str, tmp_path: Path) -> None:
    name, options = CASES[case]
    model = adapted(name, **options)
    tensors, expected = saved(model), of_pairs(model, PAIRS)
    model.save_pretrained(tmp_path / "before")
    grow(model, maps(name)[1], ITALIAN)
    assert same(expected, of_pairs(model, PAIRS)) and holds(saved(model), tensors)
    italian = of_pairs(model, ITALIAN)
    grow(model, maps(name)[2], SPANISH, seed=6, tune="specific", projections="output")
    everything = of_pairs(model, GROWN)
    assert same({**expected, **italian, "mixed": expected["mixed"]}, everything) and holds(saved(model), tensors)
    assert not everything["en-it"].equal(everything["en-es"])
    model.save_pretrained(tmp_path / "grown")
    loaded = PeftModel.from_pretrained(base(name), str(tmp_path / "grown")).eval()
    assert same(everything, of_pairs(loaded, GROWN)) and same(saved(loaded), saved(model))
    remove_language_pairs(loaded, ITALIAN)
    assert same({**expected, "en-es": everything["en-es"]}, of_pairs(loaded, [*PAIRS, *SPANISH]))
    assert not any(".it_" in key or "_it" in key.rpartition(".")[2] for key in saved(loaded))
    remove_language_pairs(loaded, SPANISH)
    assert same(saved(loaded), tensors) and saved(loaded).keys() == tensors.keys()
    loaded.save_pretrained(tmp_path / "after")
    for file in ("adapter_model.safetensors", "adapter_config.json"):
        before, after = ((tmp_path / folder / file).read_bytes() for folder in ("before", "after"))
        if file.endswith("json"):  # a loaded adapter is saved for inference
            before, after = ({**json.loads(text), "digest": 0, "inference_mode": 0} for text in (before, after))
        assert before == after


def test_a_mixed_batch_equals_each_sample_alone(form: str) -> None:
    name, options = CASES[form]
    model = grown(name, **options)
    compose_language_pair(model, "de-it", neuron_map=maps(name)[2])
    for pairs in (["en-de", "en-it", "en-es"], ["de-it", "de-en", "it-en"], ["es-de", "de-it", "en-fr"]):
        mixed = logits(model, ids(), language_pairs=pairs)
        for row, pair in enumerate(pairs):
            alone = logits(model, ids()[row : row + 1], language_pairs=[pair])
            torch.testing.assert_close(mixed[row : row + 1], alone, atol=2e-5, rtol=2e-5)


def test_low_rank_blocks_on_the_same_neurons_add_up() -> None:
    """The general block and that of an added language share neurons, in a batch where both are used."""
    name, options = CASES["BLOOM"]
    model, pairs = grown(name, **options), ["es-de", "en-it", "en-fr"]
    mixed = logits(model, ids(), language_pairs=pairs)
    for row, pair in enumerate(pairs):
        alone = logits(model, ids()[row : row + 1], language_pairs=[pair])
        torch.testing.assert_close(mixed[row : row + 1], alone, atol=2e-5, rtol=2e-5)


def test_only_new_blocks_are_trained(form: str) -> None:
    name, options = CASES[form]
    model = adapted(name, **options)
    add_language_pairs(model, maps(name)[1], ITALIAN, specific_rank=2, attention_rank=2)
    trained = [key for key, value in model.named_parameters() if value.requires_grad]
    assert trained and all(".it_" in key or ".gates_" in key for key in trained)
    model.train()(**{**inputs(model), "language_pairs": ["en-it", "it-en", "en-it"]}).loss.backward()
    assert all(value.grad is not None for key, value in model.named_parameters() if value.requires_grad)
    assert all(value.grad is None for value in model.parameters() if not value.requires_grad)


@pytest.mark.parametrize("first", ["all", "input", "output"])
@pytest.mark.parametrize("later", ["all", "input", "output"])
def test_a_new_block_has_its_own_projections(first: str, later: str) -> None:
    """Whatever the adapter's first blocks are on."""
    model = adapted("Gemma 3", projections=first, specific_rank=2)
    grow(model, maps("Gemma 3")[1], ITALIAN, projections=later)
    names = {"all": {"gate_proj", "up_proj", "down_proj"}, "input": {"gate_proj", "up_proj"}, "output": {"down_proj"}}
    for block, projections in {"general": first, "de": first, "it": later}.items():
        keys = [key.rpartition(".")[2] for key in saved(model) if "mlp." in key and key.endswith("_A")]
        found = {key.removeprefix(f"{block}_").removesuffix("_A") for key in keys if key.startswith(f"{block}_")}
        assert found == names[projections]
    expected = logits(model, ids(), language_pairs=["en-it"] * 3)
    model.set_language_pair("en-it")
    torch.testing.assert_close(logits(model.merge_and_unload(), ids()), expected, atol=2e-5, rtol=2e-5)


@pytest.mark.parametrize(("name", "rank"), [("Gemma 3", 2), ("Gemma 3", None), ("Phi-3", 2), ("GPT-2", 2)])
@pytest.mark.parametrize("tune", ["pair", "specific"])
def test_a_block_begins_as_that_of_another_language(name: str, rank: int | None, tune: str) -> None:
    """On the neurons of both ΔW is the other's, elsewhere 0; in attention it is the other's. Both go apart then."""
    model = adapted(name, specific_rank=2)
    grow(model, maps(name)[1], ITALIAN, specific_rank=rank, tune=tune)
    tensors, expected = saved(model), of_pairs(model, [*PAIRS, *ITALIAN])
    form = {"specific_rank": rank, "attention_rank": 2}
    add_language_pairs(model, maps(name)[2], SPANISH, init_from="it", **form)
    assert same(expected, of_pairs(model, [*PAIRS, *ITALIAN])) and holds(saved(model), tensors)
    copied = alone = 0
    for layer in (each.blocks("default") for each in model.modules() if isinstance(each, LanderFFN)):
        if not {"it", "es"} <= layer.layout.specific.keys():
            continue
        for projection, parts in layer.projections.items():
            by_place = [
                dict(zip(layer.places(each, parts).tolist(), layer.rows(each, projection), strict=True))
                for each in ("it", "es")
            ]
            for place, row in by_place[1].items():
                assert row.equal(by_place[0].get(place, torch.zeros_like(row)))
                copied, alone = copied + (place in by_place[0]), alone + (place not in by_place[0])
    assert (copied > 0, alone > 0) == (tune == "pair", tune == "specific"), "neurons of one language are no other's"
    attention = {key: value for key, value in saved(model).items() if "attn" in key and ".it_" in key}
    assert attention and all(
        value.equal(saved(model)[key.replace(".it_", ".es_")]) for key, value in attention.items()
    )
    randomize_adapter(model, seed=9)
    assert holds(saved(model), tensors), "no memory is shared"


def inputs(model: PreTrainedModel) -> dict[str, torch.Tensor]:
    return {"input_ids": ids(), "labels": ids()}


def test_split_and_joined_again(form: str, tmp_path: Path) -> None:
    name, options = CASES[form]
    model = grown(name, **options)
    compose_language_pair(model, "it-de", neuron_map=maps(name)[2])
    pairs = [*GROWN, "it-de"]
    expected = of_pairs(model, pairs)
    folders = split_adapter(model, tmp_path)
    single = PeftModel.from_pretrained(base(name), str(folders["it-de"])).eval()
    torch.testing.assert_close(logits(single, ids()), expected["it-de"], atol=1e-5, rtol=1e-5)
    config = LanderConfig.from_pretrained(str(folders["en-de"]))
    assert config.additions is None and config.composed_pairs is None and config.format_version < 3
    joined = join_adapters(base(name), [folders[pair] for pair in pairs]).eval()
    assert same(saved(model), saved(joined)) and saved(model).keys() == saved(joined).keys()
    assert same(expected, of_pairs(joined, pairs))
    mine, theirs = model.peft_config["default"], joined.peft_config["default"]
    assert theirs.neuron_counts == mine.neuron_counts and theirs.additions == mine.additions
    assert theirs.composed_pairs == ["it-de"]


# What is frozen stays so


def trained(model: torch.nn.Module) -> set[str]:
    return {key for key, value in model.named_parameters() if value.requires_grad}


def test_frozen_through_everything(tmp_path: Path) -> None:
    model = grown("Gemma 3", car="learned", attention_modules=["v"])
    expected = trained(model)
    assert expected and all(".es_" in key or ".gates_" in key for key in expected)
    model.save_pretrained(tmp_path)
    model.set_adapter("default")
    assert trained(model) == expected
    model.base_model.set_requires_grad("default", False)
    assert not trained(model)
    model.base_model.set_requires_grad("default", True)
    assert trained(model) == expected
    model.add_adapter("other", LanderConfig(task_type="CAUSAL_LM", neuron_map=maps("Gemma 3")[0]))
    model.set_adapter("other")
    model.set_adapter("default")
    assert trained(model) == expected
    loaded = PeftModel.from_pretrained(base("Gemma 3"), str(tmp_path), is_trainable=True)
    assert trained(loaded) == expected
    loaded.load_adapter(str(tmp_path), "default", is_trainable=True)
    assert trained(loaded) == expected
    assert not trained(PeftModel.from_pretrained(base("Gemma 3"), str(tmp_path)))


def test_merged_pairs_are_what_they_were() -> None:
    model = grown("OPT", attention_modules=["v"])
    for pair in ("en-de", "en-it", "es-de"):
        model.set_language_pair(pair)
        expected = logits(model, ids())
        model.merge_adapter()
        torch.testing.assert_close(logits(model, ids()), expected, atol=1e-4, rtol=1e-4)
        model.unmerge_adapter()
        assert logits(model, ids()).equal(expected)


def test_another_adapter_is_left_alone() -> None:
    model = adapted("Gemma 3")
    model.add_adapter("other", LanderConfig(task_type="CAUSAL_LM", neuron_map=maps("Gemma 3")[0]))
    model.set_adapter("other")
    randomize_adapter(model, seed=3)
    before, expected = trained(model), of_pairs(model, PAIRS)
    add_language_pairs(model, maps("Gemma 3")[1], ITALIAN)
    assert trained(model) == before and same(expected, of_pairs(model, PAIRS))
    model.set_adapter("default")
    assert all(".it_" in key for key in trained(model))


def test_all_named_architectures_are_covered() -> None:
    assert {name for name, _ in CASES.values()} <= set(ARCHITECTURES)
