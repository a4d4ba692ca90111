"""Factors in attention that all pairs share: in every architecture, on the rows of their role, as LoRA has them."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import PreTrainedModel

from peft_landermt import LanderConfig, NeuronMap, join_adapters, split_adapter
from peft_landermt.attention import ATTENTION_LAYOUTS, layer_of, recognise_attention
from peft_landermt.errors import ArchitectureError, ConfigError
from peft_landermt.lander.shared import LanderAttention

from ..conftest import PAIRS, build_model
from .helpers import adapt, ids, logits
from .test_architectures import ARCHITECTURES, tiny

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")


def attention_layers(model: torch.nn.Module) -> dict[str, LanderAttention]:
    return {name: module for name, module in model.named_modules() if isinstance(module, LanderAttention)}


def first_attention(model: Any) -> torch.Tensor:
    """Attention weights of the first layer: (samples, heads, tokens, tokens)."""
    options: dict[str, Any] = {"output_attentions": True}
    if model.config.is_encoder_decoder:
        options["decoder_input_ids"] = ids().flip(1)
    with torch.no_grad():
        out = model(input_ids=ids(), **options)
    return (out.encoder_attentions if model.config.is_encoder_decoder else out.attentions)[0]


FORMS = (
    *("Gemma 3", "BLOOM", "GPT-2", "GPT-NeoX (Pythia)", "Falcon", "MPT", "OPT", "Phi 2", "Phi-3"),
    *("NLLB, M2M100", "T5"),
)
"""One architecture of every form; the others run with the slow tests."""


@pytest.fixture(params=[n if n in FORMS else pytest.param(n, marks=pytest.mark.slow) for n in ARCHITECTURES])
def name(request: pytest.FixtureRequest) -> str:
    return request.param


def adapted(name: str, **options: Any) -> PeftModel:
    layout = ARCHITECTURES[name].ffn_layout
    return adapt(copy.deepcopy(tiny(name)), None, None, ffn_layout=layout, **options)


@pytest.mark.parametrize("roles", [["v", "o"], ["q"], ["k"]], ids="+".join)
def test_roles_are_those_of_the_base(name: str, roles: list[str]) -> None:
    """Values and outputs do not decide where the first layer looks; queries and keys do."""
    base = copy.deepcopy(tiny(name))
    base.set_attn_implementation("eager")
    before = first_attention(base)
    layout = ARCHITECTURES[name].ffn_layout
    model = adapt(base, None, None, ffn_layout=layout, attention_modules=roles, attention_rank=4, seed=None)
    assert first_attention(model).equal(before)
    untouched = logits(model, ids())
    with torch.no_grad():
        for layer in attention_layers(model).values():
            for role in roles:
                layer.blocks("default").factors(role)[1].normal_(std=0.3)
    assert not torch.allclose(logits(model, ids()), untouched, atol=1e-3)
    assert torch.allclose(first_attention(model), before, atol=1e-6) == (roles == ["v", "o"])


def test_saved_merged_and_unloaded(name: str, tmp_path: Path) -> None:
    model = adapted(name, attention_modules=["q", "k", "v", "o"], attention_rank=4)
    plain = copy.deepcopy(tiny(name))
    expected = logits(model, ids())
    model.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(copy.deepcopy(plain), str(tmp_path)).eval()
    assert logits(loaded, ids()).equal(expected)
    loaded.load_adapter(str(tmp_path), adapter_name="second")
    loaded.set_adapter("second")
    assert logits(loaded, ids()).equal(expected)
    loaded.delete_adapter("default")
    assert logits(loaded, ids()).equal(expected)
    unloaded = loaded.unload()
    assert [key for key, _ in unloaded.named_modules()] == [key for key, _ in plain.named_modules()]
    assert logits(unloaded, ids()).equal(logits(plain, ids()))
    merged = model.merge_and_unload()
    assert [key for key, _ in merged.named_modules()] == [key for key, _ in plain.named_modules()]
    torch.testing.assert_close(logits(merged, ids()), expected, atol=1e-4, rtol=1e-4)


def test_a_base_that_reads_a_weight_without_calling_its_layer() -> None:
    model = adapted("BLOOM", attention_modules=["o"])
    for module in attention_layers(model).values():
        module.base_layer.pretraining_tp, module.base_layer.slow_but_exact = 2, True
    with pytest.raises(ArchitectureError, match="slow_but_exact=False"):
        logits(model, ids())


@pytest.fixture
def architecture() -> str:
    return "llama"


@pytest.mark.parametrize("options", [{}, {"specific_rank": 2}, {"projections": "output"}], ids=str)
def test_mixed_pairs_equal_single_ones(base: PreTrainedModel, neuron_map: NeuronMap, options: dict[str, Any]) -> None:
    model = adapt(base, neuron_map, attention_modules=["v", "o"], attention_rank=4, **options)
    ffns = model.peft_config["default"].neuron_counts
    assert {layer_of(name) for name in attention_layers(model.get_base_model())} == {layer_of(name) for name in ffns}
    mixed = logits(model, ids(), language_pairs=PAIRS)
    for row, pair in enumerate(PAIRS):
        alone = logits(model, ids()[row : row + 1], language_pairs=[pair])
        torch.testing.assert_close(mixed[row : row + 1], alone, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("options", [{}, {"specific_rank": 2}, {"projections": "input", "specific_rank": 2}], ids=str)
def test_split_and_joined(
    base: PreTrainedModel, neuron_map: NeuronMap, tmp_path: Path, options: dict[str, Any]
) -> None:
    model = adapt(base, neuron_map, attention_modules=["v", "o"], attention_rank=4, **options)
    mixed = logits(model, ids(), language_pairs=PAIRS)
    folders = split_adapter(model, tmp_path)
    for row, pair in enumerate(PAIRS):
        single = PeftModel.from_pretrained(build_model("llama"), str(folders[pair])).eval()
        torch.testing.assert_close(logits(single, ids())[row], mixed[row], atol=1e-5, rtol=1e-5)
    joined = join_adapters(build_model("llama"), list(folders.values())).eval()
    torch.testing.assert_close(logits(joined, ids(), language_pairs=PAIRS), mixed, atol=1e-5, rtol=1e-5)


def test_the_same_as_lora_of_the_same_factors(base: PreTrainedModel, neuron_map: NeuronMap) -> None:
    plain = copy.deepcopy(base)
    model = adapt(base, neuron_map, ["en-de"], attention_modules=["v", "o"], attention_rank=4, seed=None)
    lora = get_peft_model(plain, LoraConfig(r=4, lora_alpha=4, target_modules=["v_proj", "o_proj"])).eval()
    layers = attention_layers(model)
    assert len(layers) == 2
    with torch.no_grad():
        for layer in layers.values():
            for role in ("v", "o"):
                layer.blocks("default").factors(role)[1].normal_(std=0.3)
        for key, module in lora.named_modules():
            if key.endswith(("v_proj", "o_proj")):
                place, _, projection = key.rpartition(".")
                ours = layers.get(place)
                factor_a, factor_b = module.lora_A["default"].weight, module.lora_B["default"].weight
                if ours is None:
                    factor_b.zero_()
                    continue
                for theirs, mine in zip(
                    (factor_a, factor_b), ours.blocks("default").factors(projection[0]), strict=True
                ):
                    theirs.copy_(mine)
    torch.testing.assert_close(logits(model, ids()), logits(lora, ids()), atol=1e-5, rtol=1e-5)


PLACES = {
    "llama": {"v": "v_proj", "o": "o_proj", "output": "down_proj"},
    "opt": {"v": "v_proj", "o": "out_proj", "output": "fc2"},
}


@pytest.mark.parametrize("architecture", PLACES)
def test_trained_as_lora_of_alpha_twice_its_rank(architecture: str) -> None:
    """Factors of all neurons on the output projection, of v and of o, at the rates of `parameter_groups`, go step by
    step where LoRA's go from the same start: A is what reads a projection's input, B what writes to its output."""
    base, places = build_model(architecture), PLACES[architecture]
    lora = get_peft_model(copy.deepcopy(base), LoraConfig(r=4, lora_alpha=8, target_modules=list(places.values())))
    config = LanderConfig(projections="output", general_rank=4, attention_modules=["v", "o"], attention_rank=4)
    model = get_peft_model(base, config)
    theirs = {name: weight for name, weight in lora.named_parameters() if weight.requires_grad}
    ours = {name: weight for name, weight in model.named_parameters() if weight.requires_grad}
    assert len(theirs) == len(ours) == 3 * 2 * base.config.num_hidden_layers
    for name, weight in ours.items():
        side = name[-1]
        role = "output" if places["output"] in name else name.split("_")[-2]
        if role == "output":
            side = {"A": "B", "B": "A"}[side]
        layer = f"layers.{next(part for part in name.split('.') if part.isdigit())}."
        (same,) = [one for key, one in theirs.items() if layer in key and f"{places[role]}.lora_{side}" in key]
        weight.data = (same.data.t() if role == "output" else same.data).clone()
        assert bool(weight.any()) == (side == "A")
    steps = [
        (lora, torch.optim.AdamW(theirs.values(), lr=0.01, weight_decay=0.0)),
        (model, torch.optim.AdamW(model.base_model.parameter_groups(0.01), weight_decay=0.0)),
    ]
    losses: list[list[float]] = [[], []]
    for _ in range(10):
        for found, (adapted_model, optimizer) in zip(losses, steps, strict=True):
            loss = adapted_model(input_ids=ids(), labels=ids()).loss
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            found.append(loss.item())
    assert losses[0][-1] < losses[0][0] - 0.1
    assert losses[1] == pytest.approx(losses[0], abs=1e-4)


ONE_FFN = {
    "OPT": {"layers_to_transform": [1]},
    "Gemma 3": {"layers_to_transform": [1]},
    "NLLB, M2M100": {"target_modules": r".*encoder\.layers\.1"},
}


@pytest.mark.parametrize("name", ONE_FFN)
def test_attention_of_all_layers_beside_some_ffns(name: str, tmp_path: Path) -> None:
    """Names do not depend on which FFNs are adapted, also where these are a part of the layer that holds attention."""
    options: dict[str, Any] = {"attention_modules": ["v", "o"], "attention_rank": 4}
    model = adapted(name, **options, **ONE_FFN[name], attention_layers="all")
    everywhere = adapted(name, **options)
    assert attention_layers(model).keys() == attention_layers(everywhere).keys()
    expected, plain = logits(model, ids()), copy.deepcopy(tiny(name))
    model.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(copy.deepcopy(plain), str(tmp_path)).eval()
    assert logits(loaded, ids()).equal(expected)
    loaded.add_adapter("everywhere", LanderConfig(**options, task_type=loaded.peft_config["default"].task_type))
    loaded.save_pretrained(tmp_path / "again", selected_adapters=["default"])
    weights = "adapter_model.safetensors"
    assert (tmp_path / "again" / weights).read_bytes() == (tmp_path / weights).read_bytes()
    unloaded = loaded.unload()
    assert [key for key, _ in unloaded.named_modules()] == [key for key, _ in plain.named_modules()]


def test_attention_of_all_layers_serves_every_pair(
    base: PreTrainedModel, neuron_map: NeuronMap, tmp_path: Path
) -> None:
    options: dict[str, Any] = {"attention_modules": ["v", "o"], "attention_rank": 4, "attention_layers": "all"}
    model = adapt(base, neuron_map, **options)
    assert len(attention_layers(model)) == base.config.num_hidden_layers
    mixed = logits(model, ids(), language_pairs=PAIRS)
    split_adapter(model, tmp_path)
    plain = model.unload()
    joined = join_adapters(copy.deepcopy(plain), [tmp_path / pair for pair in PAIRS]).eval()
    torch.testing.assert_close(logits(joined, ids(), language_pairs=PAIRS), mixed, atol=1e-5, rtol=1e-5)
    for index, pair in enumerate(PAIRS):
        alone = PeftModel.from_pretrained(copy.deepcopy(plain), str(tmp_path / pair)).eval()
        torch.testing.assert_close(logits(alone, ids())[index], mixed[index], atol=1e-5, rtol=1e-5)


def test_default_attention_is_told_by_the_base(base: PreTrainedModel) -> None:
    """q, k, v and o where attention is known and free; FFNs alone, with a warning, where not."""
    known = get_peft_model(copy.deepcopy(base), LanderConfig(task_type="CAUSAL_LM"))
    assert known.peft_config["default"].attention_modules == ["q", "k", "v", "o"]
    strange = copy.deepcopy(base)
    for layer in strange.model.layers:
        layer.self_attn.readout = layer.self_attn.o_proj
        del layer.self_attn.o_proj
    with pytest.warns(UserWarning, match="only FFNs are adapted: .*no attention was recognised in model.layers.0"):
        model = get_peft_model(strange, LanderConfig(task_type="CAUSAL_LM"))
    assert model.peft_config["default"].attention_modules is None and not attention_layers(model)


def test_rows_of_fused_projections() -> None:
    """As transformers does: BLOOM by (heads, 3, size), Falcon (groups, queries + 2, size), GPT-2 in thirds."""
    rows = {}
    for name in ("BLOOM", "GPT-2", "Falcon", "Phi-3"):
        model = tiny(name)
        attention = next(a for key, m in model.named_modules() if (a := recognise_attention(m, key)) is not None)
        rows[name] = {role: attention.rows(role).tolist() for role in ("q", "k", "v")}
        together = sorted(row for each in rows[name].values() for row in each)
        assert together == list(range(len(together)))
    assert rows["BLOOM"]["v"] == [24 * head + 16 + each for head in range(4) for each in range(8)]
    assert rows["GPT-2"]["v"] == list(range(64, 96))
    assert rows["Falcon"]["v"] == list(range(40, 48))  # one head of keys and values for all


def test_the_docs_name_every_layout() -> None:
    text = (Path(__file__).parents[2] / "docs" / "architectures.md").read_text(encoding="utf-8")
    table = text.partition("| q, k, v | o | Used by |")[2].partition("\n\n")[0]
    rows = [line for line in table.splitlines() if line.startswith("| ")]
    expected = []
    for layout in ATTENTION_LAYOUTS:
        names = ", ".join(layout.names[:3]) if layout.fused is None else f"{layout.names[0]} (fused)"
        expected.append(f"| {names} | {layout.names[3]} | {layout.used_by} |")
    assert rows == expected


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"attention_modules": []}, "attention_modules=.*names nothing"),
        ({"attention_modules": ["v_proj"]}, "attention_modules=.*must be"),
        ({"attention_modules": ["v"], "attention_rank": 0}, "attention_rank=0"),
        ({"attention_modules": ["v"], "tune": "specific"}, "tune='specific'"),
        ({"attention_layers": "some"}, "attention_layers='some'"),
        ({"specific_rank": 0}, "specific_rank=0"),
        ({"projections": "both"}, "projections='both'"),
    ],
)
def test_wrong_options(neuron_map: NeuronMap, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        LanderConfig(task_type="CAUSAL_LM", neuron_map=neuron_map, **options)


def test_ranks_that_are_too_large(base: PreTrainedModel, neuron_map: NeuronMap) -> None:
    for options in ({"attention_modules": ["v"], "attention_rank": 33}, {"specific_rank": 33}):
        with pytest.raises(ConfigError, match="rank=33"):
            adapt(copy.deepcopy(base), neuron_map, **options)


def test_change_of_attention(base: PreTrainedModel, neuron_map: NeuronMap) -> None:
    model = adapt(base, neuron_map, ["en-de"], attention_modules=["v"], attention_rank=4)
    layers = attention_layers(model).values()
    moved = [factors[1] @ factors[0] for layer in layers if (factors := layer.blocks("default").factors("v"))]
    weights = [layer.projections["v_proj"].weight for layer in layers]
    expected = torch.cat(moved).norm() / torch.cat(weights).norm()
    assert model.training_metrics()["change_attention"] == pytest.approx(float(expected), rel=1e-5)
