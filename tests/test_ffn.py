"""Which modules are FFNs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import nn
from transformers.pytorch_utils import Conv1D

from peft_landermt.errors import ArchitectureError
from peft_landermt.ffn import FFN_LAYOUTS, FFNLayout, find_ffns, recognise

from .conftest import Quantized

D, P = 8, 20


class Children(nn.Module):
    """A module with linear layers of these names and (in, out) features."""

    def __init__(self, linear: Callable[[int, int], nn.Module] = nn.Linear, **shapes: tuple[int, int]) -> None:
        super().__init__()
        for name, shape in shapes.items():
            self.add_module(name, linear(*shape))


def _transposed(inside: int, outside: int) -> Conv1D:
    return Conv1D(outside, inside)


@pytest.mark.parametrize("linear", [nn.Linear, _transposed, Quantized])
@pytest.mark.parametrize("layout", FFN_LAYOUTS, ids=lambda layout: layout.output)
def test_every_layout(layout: FFNLayout, linear: Callable[[int, int], nn.Module]) -> None:
    shape = (D, layout.fused * P)
    module = Children(linear, **dict.fromkeys(layout.inputs, shape), **{layout.output: (P, D)})
    module.add_module("act", nn.ReLU())
    ffn = recognise(module, "layers.3.mlp")
    assert ffn is not None
    assert (ffn.name, ffn.inputs, ffn.output) == ("layers.3.mlp", layout.inputs, layout.output)
    assert (ffn.module, ffn.width, ffn.neurons, ffn.fused) == (module, D, P, layout.fused)
    assert ffn.projections == (*layout.inputs, layout.output)


def test_the_docs_name_every_layout() -> None:
    text = (Path(__file__).parents[1] / "docs" / "architectures.md").read_text(encoding="utf-8")
    table = text.partition("\n## ")[0]
    rows = [line for line in table.splitlines() if line.startswith("| ") and "Input projections" not in line]
    expected = []
    for layout in FFN_LAYOUTS:
        inputs = ", ".join(layout.inputs) + (" (fused)" if layout.fused > 1 else "")
        expected.append(f"| {inputs} | {layout.output} | {layout.used_by} |")
    assert rows == expected


def test_names_decide_where_there_are_other_linear_layers() -> None:
    """An OPT layer: its FFN has no module of its own; and neurons may be fewer than the width."""
    ffn = recognise(Children(fc1=(D, P), fc2=(P, D), extra=(D, D), head=(D, 3)))
    assert ffn is not None
    assert (ffn.inputs, ffn.output, ffn.neurons) == (("fc1",), "fc2", P)
    ffn = recognise(Children(up_proj=(P, D), gate_proj=(P, D), down_proj=(D, P)))
    assert ffn is not None
    assert (ffn.inputs, ffn.width, ffn.neurons) == (("gate_proj", "up_proj"), P, D)


@pytest.mark.parametrize(
    ("shapes", "inputs", "output"),
    [
        ({"w1": (D, P), "w2": (P, D), "w3": (D, P)}, ("w1", "w3"), "w2"),
        ({"lin1": (D, P), "lin2": (P, D)}, ("lin1",), "lin2"),
        ({"out": (P, D), "into": (D, P)}, ("into",), "out"),
    ],
)
def test_by_shape(shapes: dict[str, tuple[int, int]], inputs: tuple[str, ...], output: str) -> None:
    ffn = recognise(Children(**shapes))
    assert ffn is not None
    assert (ffn.inputs, ffn.output, ffn.width, ffn.neurons) == (inputs, output, D, P)


@pytest.mark.parametrize(
    "shapes",
    [
        pytest.param({}, id="no linear layer"),
        pytest.param({"a": (D, P)}, id="one"),
        pytest.param({"a": (D, P), "b": (D, P)}, id="no output"),
        pytest.param({"a": (P, D), "b": (P, D)}, id="two outputs"),
        pytest.param({"a": (D, P), "b": (P, D), "c": (P, D)}, id="two outputs, one input"),
        pytest.param({"a": (D, P), "b": (D, P), "c": (D, P), "d": (P, D)}, id="three inputs"),
        pytest.param({"a": (D, P), "b": (P, D + 1)}, id="widths differ"),
        pytest.param({"a": (D, P), "b": (D, D), "c": (P, D)}, id="another layer"),
        pytest.param({"a": (D, 2 * P), "b": (P, D)}, id="fused gate, Phi-3"),
        pytest.param({"a": (D, D), "b": (D, D)}, id="square"),
        pytest.param({"fc1": (D, P), "fc2": (P + 1, D)}, id="names fit, shapes do not"),
        pytest.param({"q": (D, D), "k": (D, D), "v": (D, D), "o": (D, D)}, id="attention"),
        pytest.param({"q": (D, P), "k": (D, P), "v": (D, P), "o": (P, D)}, id="attention with wide heads"),
        pytest.param({"q": (D, P), "k": (D, 4), "v": (D, 4), "o": (P, D)}, id="grouped attention with wide heads"),
        pytest.param({"c_attn": (D, 3 * D), "c_proj": (D, D)}, id="attention, fused"),
        pytest.param({"key": (D, P), "receptance": (D, D), "value": (P, D)}, id="RWKV channel mix"),
    ],
)
def test_ambiguous_or_other_modules(shapes: dict[str, tuple[int, int]]) -> None:
    assert recognise(Children(**shapes)) is None


MLP = ("gate_proj", "up_proj")
SMALL = {
    "vocab_size": 40, "hidden_size": D, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": P,
    "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
REAL: dict[str, tuple[str, dict[str, Any], str, tuple[str, ...], str, int]] = {
    # model class: config class, options, names of the FFNs, input projections, output projection, p
    "LlamaForCausalLM": ("LlamaConfig", {}, "model.layers.{}.mlp", MLP, "down_proj", P),
    "Gemma3ForCausalLM": ("Gemma3TextConfig", {"head_dim": 16}, "model.layers.{}.mlp", MLP, "down_proj", P),
    "Qwen3ForCausalLM": ("Qwen3Config", {"head_dim": 16}, "model.layers.{}.mlp", MLP, "down_proj", P),
    "BloomForCausalLM": ("BloomConfig", {}, "transformer.h.{}.mlp", ("dense_h_to_4h",), "dense_4h_to_h", 4 * D),
    "FalconForCausalLM": (
        "FalconConfig", {"ffn_hidden_size": P}, "transformer.h.{}.mlp", ("dense_h_to_4h",), "dense_4h_to_h", P,
    ),
    "GPTNeoXForCausalLM": ("GPTNeoXConfig", {}, "gpt_neox.layers.{}.mlp", ("dense_h_to_4h",), "dense_4h_to_h", P),
    "MptForCausalLM": (
        "MptConfig", {"d_model": D, "n_layers": 2, "n_heads": 2}, "transformer.blocks.{}.ffn", ("up_proj",),
        "down_proj", 4 * D,
    ),
    "GPT2LMHeadModel": ("GPT2Config", {"n_inner": P}, "transformer.h.{}.mlp", ("c_fc",), "c_proj", P),
    "GPTJForCausalLM": (
        "GPTJConfig", {"n_inner": P, "rotary_dim": 4}, "transformer.h.{}.mlp", ("fc_in",), "fc_out", P,
    ),
    "PhiForCausalLM": ("PhiConfig", {}, "model.layers.{}.mlp", ("fc1",), "fc2", P),
    "OPTForCausalLM": (
        "OPTConfig", {"ffn_dim": P, "word_embed_proj_dim": D}, "model.decoder.layers.{}", ("fc1",), "fc2", P,
    ),
}  # fmt: skip


def _on_meta(model: str, config: str, **options: Any) -> nn.Module:
    with torch.device("meta"):
        return getattr(transformers, model)(getattr(transformers, config)(**{**SMALL, **options}))


@pytest.mark.parametrize("model", REAL)
def test_real_architectures(model: str) -> None:
    """Every layer's FFN in order, and nothing else: no attention, no head."""
    config, options, names, inputs, output, neurons = REAL[model]
    ffns = find_ffns(_on_meta(model, config, **options))
    assert [ffn.name for ffn in ffns] == [names.format(layer) for layer in range(2)]
    for ffn in ffns:
        assert (ffn.inputs, ffn.output, ffn.width, ffn.neurons) == (inputs, output, D, neurons)


@pytest.mark.parametrize(("gated", "inputs"), [("relu", ("wi",)), ("gated-gelu", ("wi_0", "wi_1"))])
def test_t5(gated: str, inputs: tuple[str, ...]) -> None:
    model = _on_meta(
        "T5ForConditionalGeneration", "T5Config", d_model=D, d_ff=P, d_kv=4, num_decoder_layers=1, num_heads=2,
        feed_forward_proj=gated,
    )  # fmt: skip
    assert [(ffn.name, ffn.inputs, ffn.output) for ffn in find_ffns(model)] == [
        ("encoder.block.0.layer.1.DenseReluDense", inputs, "wo"),
        ("encoder.block.1.layer.1.DenseReluDense", inputs, "wo"),
        ("decoder.block.0.layer.2.DenseReluDense", inputs, "wo"),
    ]


@pytest.mark.parametrize(
    ("model", "config", "options", "names"),
    [
        pytest.param(
            "OPTForCausalLM",
            "OPTConfig",
            {"ffn_dim": P, "word_embed_proj_dim": 4},
            "model.decoder.layers.{}",
            id="OPT-350m: project_in and project_out of the decoder",
        ),
        pytest.param(
            "Gemma3nForCausalLM",
            "Gemma3nTextConfig",
            {
                "head_dim": 4,
                "hidden_size_per_layer_input": 4,
                "vocab_size_per_layer_input": 40,
                "laurel_rank": 2,
                "num_kv_shared_layers": 0,
                "layer_types": ["full_attention"] * 2,
                "activation_sparsity_pattern": [0.0, 0.0],
            },
            "model.layers.{}.mlp",
            id="Gemma 3n: LAuReL and the per-layer inputs",
        ),
        pytest.param(
            "Gemma4ForCausalLM",
            "Gemma4TextConfig",
            {"head_dim": 4, "hidden_size_per_layer_input": 4, "vocab_size_per_layer_input": 40},
            "model.layers.{}.mlp",
            id="Gemma 4: the per-layer inputs",
        ),
    ],
)
def test_bottlenecks_beside_ffns(model: str, config: str, options: dict[str, Any], names: str) -> None:
    if not hasattr(transformers, config):
        pytest.skip(f"this transformers has no {config}")
    ffns = find_ffns(_on_meta(model, config, **options))
    assert [ffn.name for ffn in ffns] == [names.format(layer) for layer in range(2)]


@pytest.mark.parametrize("model", [nn.Linear(D, P), nn.Sequential(nn.Linear(D, D), nn.ReLU(), nn.Linear(D, D))])
def test_no_ffn(model: nn.Module) -> None:
    with pytest.raises(ArchitectureError, match=rf"model='{type(model).__name__}': no FFN .*gate_proj\+up_proj"):
        find_ffns(model)


def test_every_candidate_is_named_once() -> None:
    """Most neurons first; a second module of the same form adds nothing."""
    shapes = {"a": (D, P), "b": (D, 2 * P), "out": (P, D), "back": (P, D), "square": (D, D)}
    model = nn.ModuleDict({"first": Children(**shapes), "second": Children(**shapes)})
    with pytest.raises(ArchitectureError) as error:
        find_ffns(model)
    candidates = [
        f"{{'inputs': ['{inputs}'], 'output': '{output}'{fused}}} (first, p={P})"
        for output in ("out", "back")
        for inputs, fused in (("a", ""), ("b", ", 'fused': 2"))
    ]
    candidates.append(f"{{'inputs': ['out', 'back'], 'output': 'a'}} (first, p={D})")
    assert error.value.remedy.endswith(f"LanderConfig: {' or '.join(candidates)}.")
    chosen = find_ffns(model, FFNLayout(("b",), "back", fused=2))
    assert [(ffn.name, ffn.inputs, ffn.output, ffn.neurons, ffn.fused) for ffn in chosen] == [
        (name, ("b",), "back", P, 2) for name in ("first", "second")
    ]


def test_several_forms_found_by_shape_are_ambiguous() -> None:
    """A bottleneck that no name tells from an FFN."""
    forms = {"ffn": Children(w1=(D, P), w2=(P, D)), "bottleneck": Children(up=(4, D), down=(D, 4), x=(D, D))}
    assert [ffn.name for ffn in find_ffns(nn.ModuleDict(forms))] == ["ffn"]
    forms["other"] = Children(into=(D, 2 * P), out=(2 * P, D))
    with pytest.raises(ArchitectureError, match=r"several forms .*'into'\], 'output': 'out'\} \(other.*\(ffn, p="):
        find_ffns(nn.ModuleDict(forms))
    assert [ffn.name for ffn in find_ffns(nn.ModuleDict(forms), FFNLayout(("w1",), "w2"))] == ["ffn"]


def test_a_layout_that_the_model_has_not() -> None:
    model = nn.ModuleDict({"mlp": Children(gate_proj=(D, P), up_proj=(D, P), down_proj=(P, D))})
    with pytest.raises(ArchitectureError, match=r"no FFN with .*'w1'.* is in it.*'gate_proj', 'up_proj'"):
        find_ffns(model, FFNLayout(("w1",), "w2"))


@pytest.mark.parametrize(
    "value",
    [
        "w1", {}, {"inputs": ["w1"]}, {"output": "w2"}, {"inputs": "w1", "output": "w2"},
        {"inputs": [], "output": "w2"}, {"inputs": ["w1", "w1"], "output": "w2"},
        {"inputs": ["w2"], "output": "w2"}, {"inputs": [1], "output": "w2"},
        {"inputs": ["w1"], "output": "w2", "fused": 3}, {"inputs": ["w1"], "output": "w2", "more": 1},
        {"inputs": [["w1"]], "output": "w2"},
    ],
    ids=str,
)  # fmt: skip
def test_malformed_layouts(value: Any) -> None:
    with pytest.raises(ArchitectureError, match=r"ffn_layout=.*: must name child modules of the FFN, as"):
        FFNLayout.from_dict(value)


@pytest.mark.parametrize(
    "value", [{"inputs": ["w1", "w3"], "output": "w2"}, {"inputs": ["w"], "output": "v", "fused": 2}]
)
def test_layouts_as_dictionaries(value: dict[str, Any]) -> None:
    assert FFNLayout.from_dict(value).to_dict() == value
