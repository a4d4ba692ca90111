"""What PEFT users do, on every architecture and with every kind of adapter.

`make behaviours` prints the table: rows are behaviours, columns architectures.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import (
    AutoPeftModelForCausalLM,
    PeftModel,
    get_peft_model,
    get_peft_model_state_dict,
    inject_adapter_in_model,
    prepare_model_for_kbit_training,
    set_peft_model_state_dict,
)
from transformers import AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerFast, pipeline

from peft_landermt import LanderConfig, LanderFFN, NeuronMap, hotswap_adapter
from peft_landermt.errors import ConfigError, LanderError

from ..conftest import PAIRS, randomize_adapter
from .helpers import adapt, cloned_state, ids, lander_layers, logits, make_config, same_state

ARCHITECTURES = ("llama", "gemma3", "bloom", "qwen2", "gpt2", "opt")
MODULES = {"llama": "norm", "gemma3": "norm", "bloom": "ln_f", "qwen2": "norm", "gpt2": "ln_f", "opt": "lm_head"}
"""A module of each architecture that is not an FFN, for `modules_to_save`."""

ADAPTERS: dict[str, tuple[list[str] | None, dict[str, Any]]] = {
    "no map": (None, {}),
    "one pair": (["en-de"], {}),
    "several pairs": (PAIRS, {}),
    "dense": (PAIRS, {"general_rank": None}),
    "drop": (PAIRS, {"inactive_neurons": "drop"}),
    "paper": (PAIRS, {"car": "paper", "inactive_neurons": "drop"}),
    "proportional": (PAIRS, {"car": "proportional"}),
    "token": (PAIRS, {"car": "token"}),
    "learned": (PAIRS, {"car": "learned"}),
}


@dataclass
class Case:
    """One architecture with one kind of adapter."""

    architecture: str
    kind: str
    model: PreTrainedModel
    neuron_map: NeuronMap
    tokenizer: PreTrainedTokenizerFast
    folder: Path

    @property
    def pairs(self) -> list[str] | None:
        return ADAPTERS[self.kind][0]

    @property
    def options(self) -> dict[str, Any]:
        return ADAPTERS[self.kind][1]

    @property
    def route(self) -> dict[str, list[str]]:
        """Keywords that a forward of three samples needs."""
        return {"language_pairs": PAIRS} if self.pairs == PAIRS else {}

    @property
    def can_merge(self) -> bool:
        return self.options.get("car") not in ("token", "learned")

    @property
    def adds_up(self) -> bool:
        """Whether several adapters of this kind can be active together."""
        return "car" not in self.options and "inactive_neurons" not in self.options

    def base(self) -> PreTrainedModel:
        return copy.deepcopy(self.model)

    def config(self, **options: Any) -> LanderConfig:
        return make_config(self.neuron_map if self.pairs else None, self.pairs, **{**self.options, **options})

    def adapted(self, seed: int | None = 1, base: PreTrainedModel | None = None, **options: Any) -> PeftModel:
        base = base if base is not None else self.base()
        neuron_map = self.neuron_map if self.pairs else None
        return adapt(base, neuron_map, self.pairs, seed=seed, **{**self.options, **options})

    def out(self, model: Any, **keywords: Any) -> torch.Tensor:
        return logits(model, ids(), **{**self.route, **keywords})

    def choose(self, model: Any) -> dict[str, Any]:
        """Choose a pair for all samples where there are several, for calls that cannot name pairs."""
        if self.route:
            getattr(model, "base_model", model).set_language_pair("en-de")
        return {"language_pairs": ["en-de"] * 3} if self.route else {}


@pytest.fixture(params=ARCHITECTURES)
def architecture(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(params=ADAPTERS)
def case(
    request: pytest.FixtureRequest,
    architecture: str,
    _bases: Callable[[str], tuple[PreTrainedModel, NeuronMap]],
    tokenizer: PreTrainedTokenizerFast,
    tmp_path: Path,
) -> Case:
    if architecture == "opt" and request.param == "token":
        pytest.skip("not applicable: OPT's FFN is no module of its own, so car='token' is refused with that reason")
    model, neuron_map = _bases(architecture)
    return Case(architecture, request.param, model, neuron_map, tokenizer, tmp_path)


def close(first: torch.Tensor, second: torch.Tensor) -> None:
    torch.testing.assert_close(first, second, rtol=1e-4, atol=1e-4)


def get_peft_model_(case: Case) -> None:
    base = case.base()
    expected, config = logits(base, ids()), case.config()
    before = copy.deepcopy(config)
    model = get_peft_model(base, config).eval()
    assert config == before and model.peft_config["default"] is config
    assert case.out(model).equal(expected) is not config.changes_fresh_output
    randomize_adapter(model)
    assert not case.out(model).equal(expected)


def add_adapter(case: Case) -> None:
    model = case.adapted()
    expected = case.out(model)
    model.add_adapter("second", case.config())
    assert case.out(model).equal(expected)
    for layer in lander_layers(model).values():
        assert not any(weight.requires_grad for weight in layer.blocks("second").parameters())
    assert model.active_adapters == ["default"]


def load_adapter(case: Case) -> None:
    tuned = case.adapted(seed=2)
    tuned.save_pretrained(str(case.folder))
    model = case.adapted(seed=3)
    result = model.load_adapter(str(case.folder), "second")
    assert not result.missing_keys and not result.unexpected_keys
    model.set_adapter("second")
    assert case.out(model).equal(case.out(tuned))


def set_adapter(case: Case) -> None:
    model = case.adapted(seed=1)
    first = case.out(model)
    model.add_adapter("second", case.config())
    model.set_adapter("second")
    randomize_adapter(model, seed=2)
    second = case.out(model)
    model.set_adapter("default")
    assert case.out(model).equal(first) and not second.equal(first)
    model.set_adapter("second")
    assert case.out(model).equal(second)


def delete_adapter(case: Case) -> None:
    model = case.adapted()
    expected = case.out(model)
    model.add_adapter("second", case.config())
    model.delete_adapter("second")
    assert list(model.peft_config) == ["default"] and not any("second" in key for key in model.state_dict())
    assert case.out(model).equal(expected)
    with pytest.raises(ValueError, match="absent"):
        model.delete_adapter("absent")


def disable_adapter(case: Case) -> None:
    model = case.adapted()
    tuned, base = case.out(model), logits(case.model, ids())
    with model.disable_adapter():
        assert case.out(model).equal(base) and logits(model, ids()).equal(base)
    assert case.out(model).equal(tuned)


def set_requires_grad(case: Case) -> None:
    model = case.adapted()
    for wanted in (False, True):
        model.set_requires_grad("default", requires_grad=wanted)
        for layer in lander_layers(model).values():
            assert all(weight.requires_grad is wanted for weight in layer.blocks("default").parameters())


def merge_and_unmerge(case: Case) -> None:
    model = case.adapted()
    routed = case.choose(model)
    before = {key: value for key, value in cloned_state(model).items() if ".base_layer." in key}
    expected = case.out(model, **routed)
    if not case.can_merge:
        with pytest.raises(ConfigError, match="depends on the input"):
            model.merge_adapter()
    else:
        for _ in range(3):
            model.merge_adapter()
            close(logits(model, ids()), expected)
            model.unmerge_adapter()
    after = {key: value for key, value in model.state_dict().items() if ".base_layer." in key}
    assert same_state(before, after) and case.out(model, **routed).equal(expected)


def merge_and_unload(case: Case) -> None:
    model = case.adapted()
    routed = case.choose(model)
    expected = case.out(model, **routed)
    if not case.can_merge:
        with pytest.raises(ConfigError, match="keep the adapter active"):
            model.merge_and_unload()
        return
    merged = model.merge_and_unload()
    close(logits(merged, ids()), expected)
    assert merged.state_dict().keys() == case.model.state_dict().keys()
    merged.save_pretrained(case.folder)
    plain = AutoModelForCausalLM.from_pretrained(case.folder)
    assert type(plain) is type(case.model)
    close(logits(plain.eval(), ids()), expected)


def unload(case: Case) -> None:
    base = case.adapted().unload()
    assert same_state(base.state_dict(), case.model.state_dict())
    assert logits(base, ids()).equal(logits(case.model, ids()))


def safe_merge(case: Case) -> None:
    if not case.can_merge:
        pytest.skip("not applicable: a gate that depends on the input is never merged")
    model = case.adapted()
    case.choose(model)
    with torch.no_grad():
        for layer in lander_layers(model).values():
            next(layer.blocks("default").parameters()).fill_(float("nan"))
    before = cloned_state(model)
    with pytest.raises(
        ValueError, match=r"NaNs detected in the merged weights. The adapter default seems to be broken"
    ):
        model.merge_adapter(safe_merge=True)
    after = model.state_dict()
    assert all(before[key].equal(after[key]) for key in before if ".base_layer." in key)


def from_pretrained(case: Case) -> None:
    tuned = case.adapted()
    expected = case.out(tuned)
    tuned.save_pretrained(str(case.folder / "sub"))
    for keywords in ({}, {"low_cpu_mem_usage": True}, {"autocast_adapter_dtype": False}):
        loaded = PeftModel.from_pretrained(case.base(), str(case.folder), subfolder="sub", **keywords)
        assert case.out(loaded).equal(expected)
        assert not any(weight.requires_grad for weight in loaded.parameters())
    loaded = PeftModel.from_pretrained(case.base(), str(case.folder / "sub"), is_trainable=True)
    assert loaded.get_nb_trainable_parameters() == tuned.get_nb_trainable_parameters()


def auto_peft_model(case: Case) -> None:
    base = case.base()
    base.save_pretrained(case.folder / "base")
    base.name_or_path = str(case.folder / "base")
    tuned = case.adapted(base=base)
    tuned.save_pretrained(str(case.folder / "adapter"))
    loaded = AutoPeftModelForCausalLM.from_pretrained(str(case.folder / "adapter"))
    assert case.out(loaded).equal(case.out(tuned))


def state_dict_round_trip(case: Case) -> None:
    tuned, other = case.adapted(seed=1), case.adapted(seed=2)
    set_peft_model_state_dict(other, get_peft_model_state_dict(tuned))
    assert case.out(other).equal(case.out(tuned))


def saves_the_same_bytes(case: Case) -> None:
    tuned = case.adapted()
    tuned.save_pretrained(str(case.folder / "first"))
    PeftModel.from_pretrained(case.base(), str(case.folder / "first")).save_pretrained(str(case.folder / "second"))
    for name in ("adapter_model.safetensors", "adapter_config.json", "README.md"):
        assert (case.folder / "first" / name).read_bytes() == (case.folder / "second" / name).read_bytes()


def inject_adapter(case: Case) -> None:
    model = inject_adapter_in_model(case.config(), case.base()).eval()
    assert any(isinstance(module, LanderFFN) for module in model.modules())
    assert type(model) is type(case.model)
    if case.pairs != PAIRS:
        assert logits(model, ids()).equal(logits(case.model, ids()))


def transformers_own_adapters(case: Case) -> None:
    if case.pairs == PAIRS:
        pytest.skip("not applicable: without PeftModel nothing hands on language_pairs; split the adapter first")
    tuned = case.adapted()
    tuned.save_pretrained(str(case.folder / "adapter"))
    expected, base = case.out(tuned), logits(case.model, ids())
    model = case.base()
    model.load_adapter(str(case.folder / "adapter"))
    assert logits(model, ids()).equal(expected)
    model.disable_adapters()
    assert logits(model, ids()).equal(base)
    model.enable_adapters()
    assert logits(model, ids()).equal(expected)
    model.save_pretrained(str(case.folder / "again"))
    assert PeftModel.from_pretrained(case.base(), str(case.folder / "again"))(ids()).logits.equal(expected)
    fresh = case.base()
    fresh.add_adapter(case.config(), "new")
    assert logits(fresh.eval(), ids()).equal(base)
    model.delete_adapter("default")
    assert not any("lander" in key for key in model.state_dict())


def text_generation_pipeline(case: Case) -> None:
    model = case.adapted()
    case.choose(model)
    generate = pipeline("text-generation", model=model, tokenizer=case.tokenizer)
    text = generate("We drink", max_new_tokens=3, do_sample=False)[0]["generated_text"]
    assert text.startswith("We drink")


def print_trainable_parameters(case: Case) -> None:
    model = case.adapted()
    trainable, total = model.get_nb_trainable_parameters()
    blocks = [layer.blocks("default") for layer in lander_layers(model).values()]
    assert trainable == sum(weight.numel() for block in blocks for weight in block.parameters())
    assert total == trainable + sum(weight.numel() for weight in case.model.parameters())


def modules_to_save(case: Case) -> None:
    tuned = case.adapted(modules_to_save=[MODULES[case.architecture]])
    tuned.save_pretrained(str(case.folder))
    loaded = PeftModel.from_pretrained(case.base(), str(case.folder))
    assert case.out(loaded).equal(case.out(tuned))
    assert not case.out(tuned).equal(case.out(case.adapted()))


def kbit_training(case: Case) -> None:
    """Freezes the base and turns gradient checkpointing on; what it prepares must still train."""
    base = prepare_model_for_kbit_training(case.base())
    model = get_peft_model(base, case.config()).train()
    model(input_ids=ids(), labels=ids(), **case.route).loss.backward()
    assert all(weight.grad is not None for weight in model.parameters() if weight.requires_grad)


def gradient_checkpointing(case: Case) -> None:
    gradients = []
    for keywords in (None, {"use_reentrant": False}, {"use_reentrant": True}):
        model = case.adapted().train()
        if keywords is not None:
            model.gradient_checkpointing_enable(keywords)
            model.enable_input_require_grads()
        model(input_ids=ids(), labels=ids(), **case.route).loss.backward()
        gradients.append({n: p.grad for n, p in model.named_parameters() if p.requires_grad})
    for other in gradients[1:]:
        for name, gradient in gradients[0].items():
            torch.testing.assert_close(other[name], gradient, msg=name)


def compiles_without_graph_breaks(case: Case) -> None:
    model = case.adapted()
    case.choose(model)
    layer = next(iter(lander_layers(model).values()))
    if case.architecture == "opt":
        pytest.skip("not applicable: OPT's FFN is no module that could be compiled alone")
    states = torch.randn(3, 8, layer.width)
    arguments = (states, torch.randn_like(states)) if case.architecture == "bloom" else (states,)
    torch._dynamo.reset()
    compiled = torch.compile(layer, fullgraph=True, backend="eager")
    with torch.no_grad():
        close(compiled(*arguments), layer(*arguments))


def half_precision(case: Case) -> None:
    for dtype in (torch.bfloat16, torch.float16):
        model = case.adapted(base=case.base().to(dtype), verify_base=False)
        assert all(weight.dtype == torch.float32 for weight in model.parameters() if weight.requires_grad)
        out = case.out(model)
        assert out.dtype == dtype and torch.isfinite(out).all()
        model.train()(input_ids=ids(), labels=ids(), **case.route).loss.backward()


def hotswap(case: Case) -> None:
    tuned = case.adapted(seed=2)
    tuned.save_pretrained(str(case.folder))
    model = case.adapted(seed=3)
    weights = {name: weight for name, weight in model.named_parameters()}
    hotswap_adapter(model, case.folder)
    assert case.out(model).equal(case.out(tuned))
    assert all(weight is weights[name] for name, weight in model.named_parameters())


def mixed_batches(case: Case) -> None:
    """Each row of a batch over two adapters, pairs and the base equals the row alone."""
    model = case.adapted(seed=1)
    model.add_adapter("second", case.config())
    model.set_adapter("second")
    randomize_adapter(model, seed=2)
    model.eval()
    names, route = ["second", "__base__", "default"], case.route.get("language_pairs")
    extra = {"language_pairs": route} if route else {}
    mixed = logits(model, ids(), adapter_names=names, **extra)
    mask = torch.ones(3, 8, dtype=torch.long)
    generated = {
        "greedy": {"do_sample": False},
        "beams": {"do_sample": False, "num_beams": 2},
        "sampling": {"do_sample": True, "top_k": 1},
    }
    options = {"max_new_tokens": 3, "min_new_tokens": 3}
    for row, name in enumerate(names):
        alone = {"adapter_names": [name], **({"language_pairs": route[row : row + 1]} if route else {})}
        close(logits(model, ids()[row : row + 1], **alone), mixed[row : row + 1])
    for how in generated.values():
        together = model.generate(input_ids=ids(), attention_mask=mask, adapter_names=names, **extra, **options, **how)
        for row, name in enumerate(names):
            alone = {"adapter_names": [name], **({"language_pairs": route[row : row + 1]} if route else {})}
            single = model.generate(input_ids=ids()[row : row + 1], attention_mask=mask[:1], **alone, **options, **how)
            assert single[0].equal(together[row])


def mixed_training(case: Case) -> None:
    """Every adapter of a mixed batch gets the gradient of its own rows."""
    model = case.adapted(seed=1)
    model.add_adapter("second", case.config())
    model.set_adapter("second")
    randomize_adapter(model, seed=2)
    for name in ("default", "second"):
        model.set_requires_grad(name)
    names, pairs = ["second", "__base__", "default"], case.route.get("language_pairs")

    def gradients(rows: list[int]) -> dict[str, torch.Tensor | None]:
        model.zero_grad()
        extra = {"language_pairs": [pairs[row] for row in rows]} if pairs else {}
        out = model(input_ids=ids()[rows], adapter_names=[names[row] for row in rows], **extra).logits
        out.square().sum().backward()
        return {name: weight.grad for name, weight in model.named_parameters() if weight.requires_grad}

    model.train()
    together, alone = gradients([0, 1, 2]), [gradients([0]), gradients([2])]
    assert any(gradient is not None and gradient.abs().max() > 0 for gradient in together.values())
    for name, gradient in together.items():
        parts = [part[name] for part in alone if part[name] is not None]
        if gradient is None:
            assert not parts
        else:
            scale = float(gradient.abs().max()) + 1e-6
            torch.testing.assert_close(sum(parts), gradient, rtol=1e-3, atol=1e-4 * scale, msg=name)


def several_active_adapters(case: Case) -> None:
    """Deltas add up; adapters that route neurons are refused together."""
    model = case.adapted(seed=1)
    model.add_adapter("second", case.config())
    model.base_model.set_adapter(["default", "second"])
    if not case.adds_up:
        with pytest.raises(LanderError, match=r"one active adapter|activate one adapter at a time"):
            case.out(model)
        return
    if case.route:
        model.base_model.set_language_pair("en-de")
    assert torch.isfinite(logits(model, ids())).all()


def mixed_peft_model(case: Case) -> None:
    with pytest.raises(ValueError, match="LANDER"):
        get_peft_model(case.base(), case.config(), mixed=True)


BEHAVIOURS: dict[str, Callable[[Case], None]] = {
    "get_peft_model": get_peft_model_,
    "add_adapter": add_adapter,
    "load_adapter": load_adapter,
    "set_adapter": set_adapter,
    "delete_adapter": delete_adapter,
    "disable_adapter": disable_adapter,
    "set_requires_grad": set_requires_grad,
    "merge_adapter, unmerge_adapter": merge_and_unmerge,
    "merge_and_unload": merge_and_unload,
    "unload": unload,
    "safe_merge": safe_merge,
    "PeftModel.from_pretrained": from_pretrained,
    "AutoPeftModelForCausalLM": auto_peft_model,
    "get_ and set_peft_model_state_dict": state_dict_round_trip,
    "saving again gives the same bytes": saves_the_same_bytes,
    "inject_adapter_in_model": inject_adapter,
    "transformers' own adapter methods": transformers_own_adapters,
    "pipeline('text-generation')": text_generation_pipeline,
    "print_trainable_parameters": print_trainable_parameters,
    "modules_to_save": modules_to_save,
    "prepare_model_for_kbit_training": kbit_training,
    "gradient checkpointing, both variants": gradient_checkpointing,
    "torch.compile of an FFN": compiles_without_graph_breaks,
    "fp16 and bf16 base, fp32 adapter": half_precision,
    "hotswap_adapter": hotswap,
    "mixed batches, forward and generate": mixed_batches,
    "mixed batches, training": mixed_training,
    "several active adapters": several_active_adapters,
    "PeftMixedModel is refused": mixed_peft_model,
}


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning")
@pytest.mark.parametrize("behaviour", BEHAVIOURS)
def test_behaviour(behaviour: str, case: Case) -> None:
    BEHAVIOURS[behaviour](case)
