"""Folders: saved and loaded, split by pair and by language, joined in any selection, swapped in place."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import AutoPeftModelForCausalLM, PeftModel, get_peft_model_state_dict
from safetensors.torch import load_file

from peft_landermt import LsloConfig, hotswap_adapter, join_adapters, split_adapter
from peft_landermt.errors import AdapterError, ConfigError, LanderError

from ..conftest import PAIRS
from ..tuner.helpers import cloned_state, ids, logits, same_state
from .helpers import BOTH_WAYS, adapt, build

WEIGHTS, CONFIG = "adapter_model.safetensors", "adapter_config.json"
OPTIONS: dict[str, dict[str, Any]] = {
    "target": {},
    "ranks": {"rank": {"en": 1, "de": 2, "fr": 3}, "index": ["source", "target", "learned", "target"]},
    "learned": {"index": "learned", "scaling": 2.0},
}
ARCHITECTURES = ["llama", *(pytest.param(name, marks=pytest.mark.slow) for name in ("m2m100", "t5"))]


def options_for(architecture: str, kind: str) -> dict[str, Any]:
    options = dict(OPTIONS[kind])
    if isinstance(options.get("index"), list) and architecture != "llama":
        options["index"] = {"encoder": options["index"], "decoder": ["target", "source"]}
    return options


def state(model: PeftModel) -> dict[str, torch.Tensor]:
    return {key: value.detach().clone() for key, value in get_peft_model_state_dict(model).items()}


def routed(model: PeftModel, pair: str) -> torch.Tensor:
    return logits(model, ids(), language_pairs=[pair] * 3)


@pytest.fixture(autouse=True)
def _offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


@pytest.mark.parametrize("kind", OPTIONS)
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_saved_and_loaded(architecture: str, kind: str, tmp_path: Path) -> None:
    model = adapt(build(architecture), PAIRS, **options_for(architecture, kind))
    model.save_pretrained(tmp_path / "first")
    for keywords in ({}, {"low_cpu_mem_usage": True}):
        loaded = PeftModel.from_pretrained(build(architecture), str(tmp_path / "first"), **keywords)
        assert same_state(state(loaded), state(model))
        mixed = logits(loaded, ids(), language_pairs=PAIRS)
        assert mixed.equal(logits(model, ids(), language_pairs=PAIRS))
    loaded.save_pretrained(tmp_path / "second")
    for name in (WEIGHTS, CONFIG, "README.md"):
        assert (tmp_path / "first" / name).read_bytes() == (tmp_path / "second" / name).read_bytes()
    tensors = load_file(tmp_path / "first" / WEIGHTS)
    assert {key.rpartition(".")[2] for key in tensors} <= {
        "index_logits", *(f"{language}_{side}" for language in ("en", "de", "fr") for side in "AB")
    }  # fmt: skip
    card = (tmp_path / "first" / "README.md").read_text()
    assert "An [LSLo](https://arxiv.org/abs/2409.05224) adapter" in card and "KeyError: 'LSLO'" in card


@pytest.mark.parametrize("kind", OPTIONS)
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_split_and_joined_by_pair(architecture: str, kind: str, tmp_path: Path) -> None:
    model = adapt(build(architecture), BOTH_WAYS, **options_for(architecture, kind))
    folders = split_adapter(model, tmp_path)
    joined = join_adapters(build(architecture), list(folders.values())).eval()
    assert same_state(state(joined), state(model))
    mine, theirs = (each.peft_config["default"].to_dict() for each in (joined, model))
    assert {**mine, "digest": None} == {**theirs, "digest": None}
    for pair, folder in folders.items():
        alone = PeftModel.from_pretrained(build(architecture), folder)
        torch.testing.assert_close(logits(alone, ids()), routed(model, pair), rtol=1e-4, atol=1e-4)
        assert alone.routed_language_pairs == [pair]
    again = split_adapter(joined, tmp_path / "again")
    for pair, folder in again.items():
        for name in (WEIGHTS, CONFIG):
            assert (folder / name).read_bytes() == (folders[pair] / name).read_bytes()


@pytest.mark.parametrize("kind", OPTIONS)
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_split_and_joined_by_language(architecture: str, kind: str, tmp_path: Path) -> None:
    """All languages give the adapter back; two of three give the pairs of these."""
    model = adapt(build(architecture), BOTH_WAYS, **options_for(architecture, kind))
    folders = split_adapter(model, tmp_path, by="language")
    assert list(folders) == ["de", "en", "fr"]
    joined = join_adapters(build(architecture), list(folders.values())).eval()
    assert same_state(state(joined), state(model))
    two = join_adapters(build(architecture), [folders["fr"], folders["en"]]).eval()
    assert sorted(two.routed_language_pairs) == ["en-fr", "fr-en"]
    for pair in ("en-fr", "fr-en"):
        assert routed(two, pair).equal(routed(model, pair))
    both_kinds = [folders["fr"], folders["en"], split_adapter(model, tmp_path / "pairs")["en-de"]]
    mixed = join_adapters(build(architecture), both_kinds).eval()
    assert {*mixed.routed_language_pairs} >= {"en-fr", "fr-en", "en-de"}
    assert routed(mixed, "en-de").equal(routed(model, "en-de"))


def test_a_part_has_what_it_needs_only(tmp_path: Path) -> None:
    """Of four languages about a quarter; in an encoder-decoder the source below and the target above."""
    pairs = ["en-de", "de-en", "en-fr", "fr-en", "en-it", "it-en"]
    model = adapt(build("m2m100"), pairs)
    whole = sum(value.numel() for value in state(model).values())
    folders = split_adapter(model, tmp_path / "pairs")
    for pair, folder in folders.items():
        tensors = load_file(folder / WEIGHTS)
        assert sum(value.numel() for value in tensors.values()) == whole / 4
        source, target = pair.split("-")
        for key in tensors:
            below = ".encoder.layers." in key and ".encoder.layers.3." not in key
            assert key.rpartition(".")[2].startswith(source if below else target)
    languages = split_adapter(model, tmp_path / "languages", by="language")
    sizes = [sum(value.numel() for value in load_file(folder / WEIGHTS).values()) for folder in languages.values()]
    assert sizes == [whole / 4] * 4


def test_a_language_alone_is_refused(tmp_path: Path) -> None:
    folders = split_adapter(adapt(build("llama"), PAIRS), tmp_path, by="language")
    base = build("llama")
    before = cloned_state(base)
    with pytest.raises(ConfigError, match=r"languages=\['de'\].*join_adapters"):
        PeftModel.from_pretrained(base, folders["de"])
    with pytest.raises(AdapterError, match="no pair of two of them"):
        join_adapters(base, [folders["de"], folders["fr"]])
    assert same_state(base.state_dict(), before)


DIFFERENCES: dict[str, tuple[dict[str, Any], str]] = {
    "training": ({"seed": 2}, "differs from the others', so it was trained apart"),
    "index": ({"index": "source"}, "index is .* in the first"),
    "scaling": ({"scaling": 2.0}, "scaling is 1.0 in the first, 2.0 in the second"),
    "rank": ({"rank": 3}, r"en has rank 3 there, 2 in the others|de has rank 3 there"),
    "pruned": ({"pruned": 0.5}, "pruned is 0.0 in the first, 0.5 in the second"),
    "modules": ({"target_modules": ["q_proj"]}, "target_modules is None in the first"),
}


@pytest.mark.parametrize("difference", DIFFERENCES)
def test_different_adapters_are_not_joined(difference: str, tmp_path: Path) -> None:
    options, message = DIFFERENCES[difference]
    first = split_adapter(adapt(build("llama"), BOTH_WAYS), tmp_path / "a")["en-de"]
    second = split_adapter(adapt(build("llama"), BOTH_WAYS, **options), tmp_path / "b")["en-de"]
    base = build("llama")
    with pytest.raises(AdapterError, match=message):
        join_adapters(base, [first, second])
    assert not hasattr(base, "peft_config")


def test_adapters_of_two_methods_are_not_joined(tmp_path: Path) -> None:
    from ..tuner.helpers import adapt as adapt_lander

    ours = split_adapter(adapt(build("llama"), PAIRS), tmp_path / "a")["en-de"]
    other = split_adapter(adapt_lander(build("llama"), None, PAIRS), tmp_path / "b")["de-en"]
    for folders in ([ours, other], [other, ours]):
        with pytest.raises(AdapterError, match="peft_type is"):
            join_adapters(build("llama"), folders)


def test_languages_that_were_trained_apart_are_joined(tmp_path: Path) -> None:
    """On one base, in different runs: no interference, because they share nothing."""
    first = adapt(build("llama"), ["en-de", "fr-de"], seed=1)
    second = adapt(build("llama"), ["de-en", "fr-en"], seed=2)
    for name, model in (("first", first), ("second", second)):
        model.save_pretrained(tmp_path / name)
    joined = join_adapters(build("llama"), [tmp_path / "first", tmp_path / "second"]).eval()
    assert joined.routed_language_pairs == ["en-de", "fr-de", "de-en", "fr-en"]
    for model, pairs in ((first, ["en-de", "fr-de"]), (second, ["de-en", "fr-en"])):
        for pair in pairs:
            assert routed(joined, pair).equal(routed(model, pair))


@pytest.mark.parametrize("kind", [pytest.param("target", marks=pytest.mark.slow), "ranks", "learned"])
def test_weights_are_swapped_in_place(kind: str, tmp_path: Path) -> None:
    new = adapt(build("llama"), PAIRS, seed=2, **OPTIONS[kind])
    new.save_pretrained(tmp_path / "new")
    model = adapt(build("llama"), PAIRS, seed=1, **OPTIONS[kind])
    places = {name: weight.data_ptr() for name, weight in model.named_parameters()}
    hotswap_adapter(model, tmp_path / "new")
    assert same_state(state(model), state(new))
    assert {name: weight.data_ptr() for name, weight in model.named_parameters()} == places
    for options in ({"rank": 5}, {"scaling": 3.0}, {"index": "source"}):
        adapt(build("llama"), PAIRS, **{**OPTIONS[kind], **options}).save_pretrained(tmp_path / "other")
        with pytest.raises((AdapterError, ConfigError)):
            hotswap_adapter(model, tmp_path / "other")
        assert same_state(state(model), state(new))


def test_another_base_is_refused(tmp_path: Path) -> None:
    adapt(build("llama"), ["en-de"]).save_pretrained(tmp_path / "adapter")
    base = build("llama")
    torch.nn.init.zeros_(base.model.layers[1].self_attn.q_proj.weight)
    with pytest.raises(AdapterError, match="base_fingerprint"):
        PeftModel.from_pretrained(base, str(tmp_path / "adapter"))
    config = LsloConfig.from_pretrained(str(tmp_path / "adapter"))
    config.verify_base = False
    PeftModel.from_pretrained(base, str(tmp_path / "adapter"), config=config)


SLOW_NAMES = [pytest.param(name, marks=pytest.mark.slow) for name in ("lo", "lslo_", "en")]


@pytest.mark.parametrize("name", ["sl", "slo", "de_A", *SLOW_NAMES])
def test_names_that_are_parts_of_keys(name: str, tmp_path: Path) -> None:
    """Slovenian, Lao and others: PEFT tells adapters by parts of keys."""
    model = adapt(build("llama"), ["sl-lo", "lo-sl"], adapter_name=name)
    model.add_adapter("other", model.peft_config[name])
    model.set_adapter(name)
    model.save_pretrained(str(tmp_path), selected_adapters=[name])
    loaded = PeftModel.from_pretrained(build("llama"), str(tmp_path / name), adapter_name="again")
    assert routed(loaded, "lo-sl").equal(routed(model, "lo-sl"))


def test_base_and_adapter_load_at_once(tmp_path: Path) -> None:
    base = build("llama")
    base.save_pretrained(tmp_path / "base")
    base.name_or_path = str(tmp_path / "base")
    model = adapt(base, PAIRS)
    model.save_pretrained(str(tmp_path / "adapter"))
    loaded = AutoPeftModelForCausalLM.from_pretrained(str(tmp_path / "adapter"))
    assert routed(loaded, "en-fr").equal(routed(model, "en-fr"))


DAMAGES: dict[str, dict[str, Any]] = {
    "another index": {"index": ["source", "target", "target", "target"]},
    "a layer more": {"index": ["target"] * 5},
    "an unknown word": {"index": ["target", "nobody", "target", "target"]},
    "a rank of nobody": {"rank": {"en": 1, "xx": 2}},
    "another scaling": {"scaling": 3.0},
    "infinity": {"scaling": float("inf")},
    "no pairs": {"language_pairs": None},
    "half of a language": {"languages": ["de"]},
    "all pruned": {"pruned": 1.0},
    "an unknown option": {"router": "soft"},
    "a later format": {"format_version": 99},
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_configs_are_refused(damage: str, tmp_path: Path) -> None:
    adapt(build("llama"), PAIRS).save_pretrained(tmp_path)
    values = json.loads((tmp_path / CONFIG).read_text())
    (tmp_path / CONFIG).write_text(json.dumps({**values, **DAMAGES[damage]}))
    base = build("llama")
    before = cloned_state(base)
    with pytest.raises(LanderError):
        PeftModel.from_pretrained(base, str(tmp_path))
    assert same_state(base.state_dict(), before)
