"""Splitting an adapter by pair, joining the parts, and the folders in between."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from peft import LoraConfig, PeftModel, get_peft_model, get_peft_model_state_dict
from safetensors.torch import load_file, save_file
from transformers import PreTrainedModel

from peft_landermt import LanderConfig, LanderFFN, NeuronMap, join_adapters, split_adapter, write_model_card
from peft_landermt.errors import AdapterError, LanderError, LanguagePairError

from ..conftest import PAIRS, build_model
from .helpers import adapt, cloned_state, ids, logits, make_config, same_state

OPTIONS = [{"general_rank": rank, "car": car} for rank in (4, None) for car in ("off", "paper", "token", "learned")]
WEIGHTS = "adapter_model.safetensors"


@pytest.fixture
def architecture() -> str:
    return "llama"


@pytest.fixture(autouse=True)
def _offline(monkeypatch: pytest.MonkeyPatch) -> None:
    """PEFT otherwise asks the Hub for the base model when it saves."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


def state(model: PeftModel) -> dict[str, torch.Tensor]:
    return {key: value.detach().clone() for key, value in get_peft_model_state_dict(model).items()}


def routed(model: PeftModel, pair: str) -> torch.Tensor:
    return logits(model, ids(), language_pairs=[pair] * 3)


def split(base: PreTrainedModel, neuron_map: NeuronMap | None, folder: Path, **options: Any) -> dict[str, Path]:
    """Folders of an adapter with random weights; the base stays as it is."""
    pairs = options.pop("language_pairs", PAIRS)
    return split_adapter(adapt(copy.deepcopy(base), neuron_map, pairs, **options), folder)


# There and back


@pytest.mark.parametrize("options", [*OPTIONS, {"inactive_neurons": "drop"}, {"tune": "layers"}], ids=str)
def test_split_and_join(base: PreTrainedModel, neuron_map: NeuronMap, tmp_path: Path, options: dict[str, Any]) -> None:
    model = adapt(copy.deepcopy(base), neuron_map, **options)
    before, expected = state(model), {pair: routed(model, pair) for pair in PAIRS}
    folders = split_adapter(model, tmp_path / "new" / "pairs")
    assert same_state(state(model), before)
    assert folders == {pair: tmp_path / "new" / "pairs" / pair for pair in PAIRS}
    joined = join_adapters(copy.deepcopy(base), list(folders.values())).eval()
    assert same_state(state(joined), before)
    assert joined.peft_config["default"].language_pairs == PAIRS
    assert joined.peft_config["default"].neuron_counts == model.peft_config["default"].neuron_counts
    for pair in PAIRS:
        assert routed(joined, pair).equal(expected[pair])
    assert not torch.allclose(expected["en-de"], expected["en-fr"], atol=1e-2)


@pytest.mark.parametrize("options", [{}, {"car": "learned", "general_rank": None}], ids=str)
def test_split_and_join_without_a_neuron_map(base: PreTrainedModel, tmp_path: Path, options: dict[str, Any]) -> None:
    model = adapt(copy.deepcopy(base), None, PAIRS, **options)
    folders = split_adapter(model, tmp_path)
    joined = join_adapters(copy.deepcopy(base), list(folders.values())).eval()
    assert same_state(state(joined), state(model))
    for pair, folder in folders.items():
        alone = PeftModel.from_pretrained(copy.deepcopy(base), folder)
        torch.testing.assert_close(logits(alone, ids()), routed(model, pair), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("options", [*OPTIONS, {"inactive_neurons": "drop"}], ids=str)
def test_folders_load_through_peft(
    base: PreTrainedModel, neuron_map: NeuronMap, tmp_path: Path, options: dict[str, Any]
) -> None:
    model = adapt(copy.deepcopy(base), neuron_map, **options)
    for pair, folder in split_adapter(model, tmp_path).items():
        alone = PeftModel.from_pretrained(copy.deepcopy(base), folder)
        torch.testing.assert_close(logits(alone, ids()), routed(model, pair), atol=1e-5, rtol=1e-5)
        assert alone.routed_language_pairs == [pair]
        other = next(name for name in PAIRS if name != pair)
        with pytest.raises(LanguagePairError, match=f"holds {pair}"):
            routed(alone, other)


@pytest.mark.parametrize("name", ["gemma3", "bloom"])
def test_other_architectures(
    _bases: Callable[[str], tuple[PreTrainedModel, NeuronMap]], tmp_path: Path, name: str
) -> None:
    base, neuron_map = _bases(name)
    model = adapt(copy.deepcopy(base), neuron_map)
    folders = split_adapter(model, tmp_path)
    assert same_state(state(join_adapters(copy.deepcopy(base), list(folders.values()))), state(model))
    for pair, folder in folders.items():
        alone = PeftModel.from_pretrained(copy.deepcopy(base), folder)
        torch.testing.assert_close(logits(alone, ids()), routed(model, pair), atol=1e-4, rtol=1e-4)


def test_folders_hold_only_what_their_pair_needs(base: PreTrainedModel, neuron_map: NeuronMap, tmp_path: Path) -> None:
    folders = split(base, neuron_map, tmp_path)
    for pair, folder in folders.items():
        assert sorted(path.name for path in folder.iterdir()) == ["README.md", "adapter_config.json", WEIGHTS]
        tensors = load_file(folder / WEIGHTS)
        modules = {key.partition(".lander_blocks.")[0] for key in tensors}
        names = [neuron_map.neurons[layer].name for layer in neuron_map.layers(pair)]
        assert modules == {f"base_model.model.{name}" for name in names}
        blocks = {key.partition(".lander_blocks.")[2].partition("_")[0] for key in tensors}
        assert blocks - {"awareness"} == {"general", *pair.split("-")}
        assert all(value.shape == (1, 2) for key, value in tensors.items() if key.endswith("awareness_sums"))


def test_folders_can_be_swapped_in_one_model(base: PreTrainedModel, neuron_map: NeuronMap, tmp_path: Path) -> None:
    model = adapt(copy.deepcopy(base), neuron_map)
    expected = {pair: routed(model, pair) for pair in PAIRS}
    folders = split_adapter(model, tmp_path)
    swapped = PeftModel.from_pretrained(base, folders["en-de"], adapter_name="en-de")
    for pair in ("de-en", "en-fr"):
        swapped.load_adapter(folders[pair], adapter_name=pair)
    for pair in [*PAIRS, "en-de"]:
        swapped.set_adapter(pair)
        torch.testing.assert_close(logits(swapped, ids()), expected[pair], atol=1e-5, rtol=1e-5)


def test_join_in_another_order_and_in_part(base: PreTrainedModel, neuron_map: NeuronMap, tmp_path: Path) -> None:
    model = adapt(copy.deepcopy(base), neuron_map, car="token")
    folders = split_adapter(model, tmp_path / "pairs")
    for pairs in (["en-fr", "en-de", "de-en"], ["de-en", "en-fr"], ["en-de"]):
        joined = join_adapters(copy.deepcopy(base), [str(folders[pair]) for pair in pairs]).eval()
        assert joined.routed_language_pairs == pairs
        for pair in pairs:
            torch.testing.assert_close(routed(joined, pair), routed(model, pair), atol=1e-5, rtol=1e-5)
        joined.save_pretrained(str(tmp_path / "-".join(pairs)))
        loaded = PeftModel.from_pretrained(copy.deepcopy(base), tmp_path / "-".join(pairs))
        assert same_state(state(loaded), state(joined))


def test_splitting_a_joined_adapter_again(base: PreTrainedModel, neuron_map: NeuronMap, tmp_path: Path) -> None:
    folders = split(base, neuron_map, tmp_path / "first")
    joined = join_adapters(copy.deepcopy(base), list(folders.values()))
    for pair, folder in split_adapter(joined, tmp_path / "second").items():
        assert (folder / WEIGHTS).read_bytes() == (folders[pair] / WEIGHTS).read_bytes()
        assert (folder / "adapter_config.json").read_text() == (folders[pair] / "adapter_config.json").read_text()


def test_split_a_loaded_adapter_under_another_name(
    base: PreTrainedModel, neuron_map: NeuronMap, tmp_path: Path
) -> None:
    model = adapt(copy.deepcopy(base), neuron_map)
    model.save_pretrained(str(tmp_path / "whole"))
    loaded = PeftModel.from_pretrained(copy.deepcopy(base), tmp_path / "whole", adapter_name="mine")
    first, second = split_adapter(model, tmp_path / "a"), split_adapter(loaded, tmp_path / "b", "mine")
    assert list(first) == list(second) == PAIRS
    for pair in PAIRS:
        assert same_state(load_file(first[pair] / WEIGHTS), load_file(second[pair] / WEIGHTS))


def test_one_pair_splits_into_itself(base: PreTrainedModel, neuron_map: NeuronMap, tmp_path: Path) -> None:
    model = adapt(copy.deepcopy(base), neuron_map, ["en-de"])
    (folder,) = split_adapter(model, tmp_path).values()
    assert same_state(load_file(folder / WEIGHTS), state(model))


def test_modules_to_save_stay_with_every_pair(base: PreTrainedModel, neuron_map: NeuronMap, tmp_path: Path) -> None:
    model = adapt(copy.deepcopy(base), neuron_map, modules_to_save=["lm_head"])
    folders = split_adapter(model, tmp_path)
    assert all(any("lm_head" in key for key in load_file(folder / WEIGHTS)) for folder in folders.values())
    joined = join_adapters(copy.deepcopy(base), list(folders.values())).eval()
    assert same_state(state(joined), state(model))
    assert routed(joined, "en-de").equal(routed(model, "en-de"))


def test_a_joined_adapter_can_be_trained(base: PreTrainedModel, neuron_map: NeuronMap, tmp_path: Path) -> None:
    folders = split(base, neuron_map, tmp_path)
    joined = join_adapters(copy.deepcopy(base), list(folders.values()), "mine")
    original = adapt(copy.deepcopy(base), neuron_map)
    assert list(joined.peft_config) == ["mine"]
    assert joined.get_nb_trainable_parameters() == original.get_nb_trainable_parameters()
    joined(input_ids=ids(), labels=ids(), language_pairs=PAIRS).loss.backward()
    assert all(p.grad is not None for p in joined.parameters() if p.requires_grad)


# Model card


def read_card(folder: Path) -> tuple[dict[str, Any], str]:
    _, header, text = (folder / "README.md").read_text(encoding="utf-8").split("---\n", 2)
    return yaml.safe_load(header), text


def test_model_card(base: PreTrainedModel, neuron_map: NeuronMap, tmp_path: Path) -> None:
    base.name_or_path = "organisation/base-model"
    for pair, folder in split(base, neuron_map, tmp_path, car="paper").items():
        header, text = read_card(folder)
        assert header["language"] == sorted(pair.split("-"))
        assert header["library_name"] == "peft"
        assert header["pipeline_tag"] == "translation"
        assert "lander" in header["tags"]
        assert "| Base model | organisation/base-model |" in text
        assert f"| Language pairs | {pair} |" in text
        assert "car=paper, inactive_neurons=keep, tune=pair, general_rank=6" in text
        assert neuron_map.signature in text
        code = text.split("```python\n")[1].split("```")[0]
        assert code.startswith("import peft_landermt\n")
        assert f'["..."], "{pair}")' in code and 'from_pretrained("organisation/base-model")' in code
        compile(code, "README.md", "exec")


def test_model_card_hides_local_folders(base: PreTrainedModel, neuron_map: NeuronMap, tmp_path: Path) -> None:
    base.name_or_path = "/home/someone/models/base-model/"
    folders = split(base, neuron_map, tmp_path)
    assert "| Base model | base-model |" in read_card(folders["en-de"])[1]
    assert "someone" not in (folders["en-de"] / "README.md").read_text(encoding="utf-8")


def test_model_card_with_scores_and_without_anything(tmp_path: Path) -> None:
    scores = {"en-de": {"BLEU": 21.416, "chrF++": 50.0}, "de-en": {"BLEU": 3.0}}
    write_model_card(make_config(None, ["en-de", "de-en", "en-zh_Hans"]), tmp_path, scores)
    header, text = read_card(tmp_path)
    assert header["language"] == ["de", "en", "zh"]
    assert [line for line in text.split("\n") if "BLEU" in line or "chrF" in line] == [
        "| en-de BLEU | 21.42 |",
        "| en-de chrF++ | 50.00 |",
        "| de-en BLEU | 3.00 |",
    ]
    write_model_card(make_config(), tmp_path)
    header, text = read_card(tmp_path)
    assert "language" not in header
    assert "BLEU" not in text and "| Base model | the base model |" in text


def test_model_card_names_a_language_once(tmp_path: Path) -> None:
    write_model_card(make_config(None, ["zh_Hans-zh_Hant", "en-pt_BR", "en-pt_PT"]), tmp_path)
    assert read_card(tmp_path)[0]["language"] == ["en", "pt", "zh"]


# What cannot be joined


def other_map(neuron_map: NeuronMap, **changes: Any) -> NeuronMap:
    return dataclasses.replace(neuron_map, **changes)


DIFFERENCES: dict[str, tuple[dict[str, Any], dict[str, Any], str]] = {
    "neuron map": ({"signature": "another"}, {}, "neuron_map_signature is .* in the first, 'another' in the second"),
    "base": ({"fingerprint": None}, {}, "base_fingerprint is '.*' in the first, None in the second"),
    "car": ({}, {"car": "learned"}, "car is 'off' in the first, 'learned' in the second"),
    "inactive": ({}, {"inactive_neurons": "drop"}, "inactive_neurons is 'keep' in the first, 'drop' in the second"),
    "tune": ({}, {"tune": "general"}, "tune is 'pair' in the first, 'general' in the second"),
    "rank": ({}, {"general_rank": 3}, "general_rank is 16 in the first, 3 in the second"),
    "saved": ({}, {"modules_to_save": ["lm_head"]}, r"modules_to_save is None in the first, \['lm_head'\] in the sec"),
    "seed": ({}, {"seed": 2}, "differs from the others', so it was trained apart from them"),
}


def assert_refused(base: PreTrainedModel, folders: Any, match: str, error: type[Exception] = AdapterError) -> None:
    before = cloned_state(base)
    names = [name for name, _ in base.named_modules()]
    with pytest.raises(error, match=match):
        join_adapters(base, folders)
    assert same_state(base.state_dict(), before)
    assert [name for name, _ in base.named_modules()] == names
    assert not any(isinstance(module, LanderFFN) for module in base.modules())
    assert all(parameter.requires_grad for parameter in base.parameters())


@pytest.mark.parametrize("name", DIFFERENCES)
def test_different_adapters_are_not_joined(
    base: PreTrainedModel, neuron_map: NeuronMap, tmp_path: Path, name: str
) -> None:
    changes, options, message = DIFFERENCES[name]
    first = split(base, neuron_map, tmp_path / "a")
    second = split(base, other_map(neuron_map, **changes), tmp_path / "b", **options)
    assert set(neuron_map.layers("en-de")) & set(neuron_map.layers("de-en"))
    assert_refused(base, [first["en-de"], second["de-en"]], message)


def test_the_third_folder_is_checked_too(base: PreTrainedModel, neuron_map: NeuronMap, tmp_path: Path) -> None:
    first = split(base, neuron_map, tmp_path / "a")
    second = split(base, neuron_map, tmp_path / "b", seed=2)
    # en-fr has the general neurons of its layers from another training
    assert_refused(base, [first["en-de"], first["de-en"], second["en-fr"]], "trained apart")


def test_same_pair_twice(base: PreTrainedModel, neuron_map: NeuronMap, tmp_path: Path) -> None:
    folders = split(base, neuron_map, tmp_path)
    assert_refused(base, [folders["en-de"]] * 2, r"need different pairs; both hold \['en-de'\]")
    assert_refused(base, [*folders.values(), folders["de-en"]], r"both hold \['de-en'\]")


def test_with_and_without_a_neuron_map(base: PreTrainedModel, neuron_map: NeuronMap, tmp_path: Path) -> None:
    first, second = split(base, neuron_map, tmp_path / "a"), split(base, None, tmp_path / "b")
    assert_refused(base, [first["en-de"], second["de-en"]], "neuron_map_signature")


@pytest.mark.parametrize("layers", [([0, 1], [0, 1, 2]), ([0, 1, 2], [0, 1]), ([0, 1], [2, 3])], ids=str)
def test_other_layers_without_a_neuron_map(
    base: PreTrainedModel, tmp_path: Path, layers: tuple[list[int], list[int]]
) -> None:
    folders = []
    for pair, chosen in zip(("en-de", "de-en"), layers, strict=True):
        model = adapt(copy.deepcopy(base), None, [pair], layers_to_transform=chosen, seed=None)
        for key, parameter in model.named_parameters():
            if parameter.requires_grad:
                torch.nn.init.constant_(parameter, 0.01 * len(key))
        folders += split_adapter(model, tmp_path).values()
    assert_refused(base, folders, "cannot be joined: (target_modules|layers_to_transform)")


def test_adapters_without_pairs(base: PreTrainedModel, tmp_path: Path) -> None:
    for name in ("a", "b"):
        adapt(copy.deepcopy(base)).save_pretrained(str(tmp_path / name))
    assert_refused(base, [tmp_path / "a", tmp_path / "b"], "need different pairs; both hold none")


def test_adapter_of_another_method(base: PreTrainedModel, neuron_map: NeuronMap, tmp_path: Path) -> None:
    lora = get_peft_model(copy.deepcopy(base), LoraConfig(task_type="CAUSAL_LM", target_modules=["q_proj"]))
    lora.save_pretrained(str(tmp_path / "lora"))
    folders = split(base, neuron_map, tmp_path)
    assert_refused(
        base, [folders["en-de"], tmp_path / "lora"], "holds a .*LORA adapter; only LANDER and LSLO ones are joined"
    )


@pytest.mark.parametrize("folders", [[], (), "en-de", Path("en-de")], ids=repr)
def test_folders_must_be_a_list(base: PreTrainedModel, folders: Any) -> None:
    assert_refused(base, folders, "expected a list of at least one adapter folder")


@pytest.mark.parametrize("damage", ["missing", "truncated"])
def test_unreadable_weights(base: PreTrainedModel, neuron_map: NeuronMap, tmp_path: Path, damage: str) -> None:
    folders = split(base, neuron_map, tmp_path)
    path = folders["de-en"] / WEIGHTS
    content = path.read_bytes()
    path.unlink()
    if damage == "truncated":
        path.write_bytes(content[: len(content) // 2])
    assert_refused(
        base,
        [folders["en-de"], folders["de-en"]],
        "de-en.*is (missing|truncated or damaged).*; save or download .* anew",
    )


def test_folder_that_is_not_there(base: PreTrainedModel, neuron_map: NeuronMap, tmp_path: Path) -> None:
    folders = split(base, neuron_map, tmp_path)
    assert_refused(base, [folders["en-de"], tmp_path / "nowhere"], "nowhere")


def test_weights_that_lack_a_tensor(base: PreTrainedModel, neuron_map: NeuronMap, tmp_path: Path) -> None:
    folders = split(base, neuron_map, tmp_path)
    path = folders["de-en"] / WEIGHTS
    tensors = load_file(path)
    del tensors[next(key for key in tensors if key.endswith(".de_down_proj"))]
    save_file(tensors, path, {"format": "pt"})
    assert_refused(base, [folders["de-en"]], "digest=|lacks", LanderError)


def test_join_on_another_base(base: PreTrainedModel, neuron_map: NeuronMap, tmp_path: Path) -> None:
    folders = split(base, neuron_map, tmp_path)
    assert_refused(build_model("llama", seed=9), list(folders.values()), "base_fingerprint", LanderError)


# What cannot be split


def test_unknown_adapter(base: PreTrainedModel, neuron_map: NeuronMap, tmp_path: Path) -> None:
    with pytest.raises(
        AdapterError, match=r"adapter_name='other': name a LANDER or LSLO adapter; loaded: \['default'\]"
    ):
        split_adapter(adapt(base, neuron_map), tmp_path / "out", "other")
    assert not (tmp_path / "out").exists()


def test_split_of_another_method(base: PreTrainedModel, tmp_path: Path) -> None:
    lora = get_peft_model(base, LoraConfig(task_type="CAUSAL_LM", target_modules=["q_proj"]))
    with pytest.raises(AdapterError, match="name a LANDER or LSLO adapter"):
        split_adapter(lora, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_split_without_pairs(base: PreTrainedModel, tmp_path: Path) -> None:
    with pytest.raises(LanguagePairError, match="adapter 'default' was made without language pairs"):
        split_adapter(adapt(base), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_configs_of_folders(base: PreTrainedModel, neuron_map: NeuronMap, tmp_path: Path) -> None:
    for pair, folder in split(base, neuron_map, tmp_path, car="token", general_rank=4).items():
        config = LanderConfig.from_pretrained(str(folder))
        assert (config.language_pairs, config.car, config.general_rank) == ([pair], "token", 4)
        assert config.inference_mode is True
        assert config.base_fingerprint == neuron_map.fingerprint
        assert config.neuron_map_signature == neuron_map.signature
        names = [neuron_map.neurons[layer].name for layer in neuron_map.layers(pair)]
        assert list(config.neuron_counts or ()) == names
