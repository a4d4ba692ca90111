"""Every decoder architecture that the docs name, on a tiny random model built from its own config."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import transformers
from peft import PeftModel
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerFast
from transformers.pytorch_utils import Conv1D

from peft_landermt import NeuronMap, detect_neurons
from peft_landermt.errors import ArchitectureError
from peft_landermt.ffn import find_ffns

from ..conftest import PAIRS, SENTENCES, VOCABULARY
from .helpers import adapt, ids, lander_layers, logits, neuron_groups

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")


@dataclass(frozen=True)
class Architecture:
    """Names of the transformers classes and of one layer's projections, and how the config names its sizes."""

    model: str
    config: str
    output: str
    inputs: tuple[str, ...]
    options: tuple[tuple[str, Any], ...] = ()
    fused: int = 1


MLP = ("model.layers.{}.mlp.gate_proj", "model.layers.{}.mlp.up_proj")
DOWN = "model.layers.{}.mlp.down_proj"


def gated(name: str, config: str | None = None, model: str | None = None, **options: Any) -> Architecture:
    return Architecture(model or f"{name}ForCausalLM", config or f"{name}Config", DOWN, MLP, tuple(options.items()))


def plain(name: str, layer: str, up: str, down: str, model: str | None = None, **options: Any) -> Architecture:
    return Architecture(
        model or f"{name}ForCausalLM", f"{name}Config", f"{layer}.{down}", (f"{layer}.{up}",), tuple(options.items())
    )


FUSED = ("model.layers.{}.mlp.gate_up_proj",)
ARCHITECTURES: dict[str, Architecture] = {
    "Llama (EuroLLM, Tower, SmolLM)": gated("Llama"),
    "Mistral": gated("Mistral", head_dim=8),
    "Qwen 2": gated("Qwen2"),
    "Qwen 3": gated("Qwen3", head_dim=8),
    "Gemma": gated("Gemma", head_dim=8),
    "Gemma 2": gated("Gemma2", head_dim=8, query_pre_attn_scalar=8),
    "Gemma 3": gated("Gemma3", config="Gemma3TextConfig", head_dim=8),
    "Cohere (Aya)": gated("Cohere"),
    "StableLM": gated("StableLm"),
    "OLMo 2": gated("Olmo2"),
    "SmolLM 3": gated("SmolLM3"),
    "BLOOM": plain("Bloom", "transformer.h.{}.mlp", "dense_h_to_4h", "dense_4h_to_h"),
    "BLOOM, slow_but_exact": plain(
        "Bloom", "transformer.h.{}.mlp", "dense_h_to_4h", "dense_4h_to_h", slow_but_exact=True
    ),
    "GPT-2": plain("GPT2", "transformer.h.{}.mlp", "c_fc", "c_proj", model="GPT2LMHeadModel", n_inner=64),
    "GPT-NeoX (Pythia)": plain("GPTNeoX", "gpt_neox.layers.{}.mlp", "dense_h_to_4h", "dense_4h_to_h"),
    "Falcon": plain("Falcon", "transformer.h.{}.mlp", "dense_h_to_4h", "dense_4h_to_h", ffn_hidden_size=64),
    "MPT": plain(
        "Mpt",
        "transformer.blocks.{}.ffn",
        "up_proj",
        "down_proj",
        d_model=32,
        n_heads=4,
        n_layers=4,
        expansion_ratio=2,
    ),
    "OPT": plain("OPT", "model.decoder.layers.{}", "fc1", "fc2", ffn_dim=64, word_embed_proj_dim=32, init_std=0.2),
    "XGLM": plain(
        "XGLM", "model.layers.{}", "fc1", "fc2", d_model=32, ffn_dim=64, num_layers=4, attention_heads=4, init_std=0.2
    ),
    "Phi 2": plain("Phi", "model.layers.{}.mlp", "fc1", "fc2"),
    "Phi-3": Architecture("Phi3ForCausalLM", "Phi3Config", DOWN, FUSED, (), fused=2),
    "GLM-4": Architecture("GlmForCausalLM", "GlmConfig", DOWN, FUSED, (("head_dim", 8), ("pad_token_id", 0)), fused=2),
}
_COMMON = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "initializer_range": 0.2,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
_DROPOUT = ("dropout", "attention_dropout", "resid_pdrop", "embd_pdrop", "attn_pdrop", "activation_dropout")


@cache
def tiny(name: str) -> PreTrainedModel:
    architecture = ARCHITECTURES[name]
    torch.manual_seed(0)
    options = {**_COMMON, **dict.fromkeys(_DROPOUT, 0.0), **dict(architecture.options)}
    for known, others in {"d_model": ("hidden_size",), "num_layers": ("num_hidden_layers",)}.items():
        for other in others if known in options else ():
            options.pop(other, None)
    model = getattr(transformers, architecture.model)(getattr(transformers, architecture.config)(**options))
    for key, parameter in model.named_parameters():
        if key.endswith("bias"):
            nn.init.normal_(parameter, std=0.2)
    return model.eval()


@cache
def found(name: str, tokenizer: PreTrainedTokenizerFast) -> NeuronMap:
    return detect_neurons(tiny(name), tokenizer, SENTENCES, PAIRS, num_layers=2, general_ratio=0.7, progress=False)


@pytest.fixture(params=ARCHITECTURES)
def name(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def base(name: str) -> PreTrainedModel:
    return copy.deepcopy(tiny(name))


@pytest.fixture
def neuron_map(name: str, tokenizer: PreTrainedTokenizerFast) -> NeuronMap:
    return found(name, tokenizer)


def weight(module: nn.Module) -> torch.Tensor:
    """(out, in), also for transposed layers; a view."""
    return module.weight.t() if isinstance(module, Conv1D) else module.weight


def projections(model: nn.Module, name: str, layer: int) -> tuple[list[nn.Module], nn.Module]:
    architecture = ARCHITECTURES[name]
    inputs = [model.get_submodule(key.format(layer)) for key in architecture.inputs]
    return inputs, model.get_submodule(architecture.output.format(layer))


def test_ffns_are_found(name: str, base: PreTrainedModel) -> None:
    ffns = find_ffns(base)
    assert len(ffns) == 4 and {ffn.width for ffn in ffns} == {32}
    for layer, ffn in enumerate(ffns):
        inputs, output = projections(base, name, layer)
        assert [ffn.module.get_submodule(key) for key in ffn.inputs] == inputs
        assert ffn.module.get_submodule(ffn.output) is output
        assert ffn.fused == ARCHITECTURES[name].fused


def test_detection_equals_autograd(
    name: str, base: PreTrainedModel, neuron_map: NeuronMap, tokenizer: PreTrainedTokenizerFast
) -> None:
    """Eq. 3, 4 for one language, sentence by sentence through all weights."""
    hidden: list[list[torch.Tensor]] = [[] for _ in range(4)]

    def keep(layer: int) -> Callable[..., None]:
        def hook(_module: nn.Module, args: tuple[torch.Tensor, ...]) -> None:
            args[0].retain_grad()
            hidden[layer].append(args[0])

        return hook

    for layer in range(4):
        projections(base, name, layer)[1].register_forward_pre_hook(keep(layer))
    loss, count = torch.zeros(()), 0
    for text in SENTENCES["de"]:
        tokens = torch.tensor([tokenizer(text)["input_ids"]])
        loss = loss + F.cross_entropy(base(tokens).logits[0, :-1], tokens[0, 1:], reduction="sum")
        count += tokens.shape[1] - 1
    (loss / count).backward()
    for layer, batches in enumerate(hidden):
        product = torch.cat([(h.grad * h).detach().flatten(0, -2) for h in batches])
        awareness = product.abs().mean(dim=0)
        expected = awareness / awareness.sum()
        torch.testing.assert_close(neuron_map.neurons[layer].awareness[1], expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("options", [{}, {"general_rank": None}, {"car": "learned"}], ids=str)
def test_a_fresh_adapter_changes_nothing(
    base: PreTrainedModel, neuron_map: NeuronMap, options: dict[str, Any]
) -> None:
    expected = logits(base, ids())
    assert logits(adapt(base, neuron_map, seed=None, **options), ids(), language_pairs=PAIRS).equal(expected)


@pytest.mark.parametrize(
    "options",
    [
        {"general_rank": None},
        {"general_rank": 4},
        {"car": "paper", "inactive_neurons": "drop", "general_rank": None},
        {"car": "proportional"},
    ],
    ids=str,
)
def test_each_pair_runs_through_its_own_weights(
    name: str, base: PreTrainedModel, neuron_map: NeuronMap, options: dict[str, Any]
) -> None:
    """A mixed batch equals, row by row, a base model whose weights were written by hand (eq. 6 to 9)."""
    model = adapt(base, neuron_map, **options)
    mixed = logits(model, ids(), language_pairs=PAIRS)
    for row, pair in enumerate(PAIRS):
        plain_model = copy.deepcopy(tiny(name))
        with torch.no_grad():
            for layer in neuron_map.layers(pair):
                write_by_hand(name, plain_model, neuron_map, layer, pair, lander_layers(model), options)
        expected = logits(plain_model, ids()[row : row + 1])
        torch.testing.assert_close(mixed[row : row + 1], expected, rtol=1e-4, atol=2e-4)


def write_by_hand(
    name: str, model: nn.Module, neuron_map: NeuronMap, layer: int, pair: str, layers: Any, options: dict[str, Any]
) -> None:
    groups = neuron_groups(neuron_map, layer, pair)
    car = neuron_map.car(layer, pair)
    gates = {"paper": (car, 1 - car), "proportional": (1 - car, car)}.get(options.get("car", "off"), (1.0, 1.0))
    blocks = dict(layers[neuron_map.neurons[layer].name].lander_blocks["default"].named_parameters())
    inputs, output = projections(model, name, layer)
    fused, neurons = ARCHITECTURES[name].fused, len(neuron_map.neurons[layer].owner)
    names = [key.rpartition(".")[2] for key in (*ARCHITECTURES[name].inputs, ARCHITECTURES[name].output)]
    for key, module in zip(names, (*inputs, output), strict=True):
        is_output = module is output
        for block in ("general", *pair.split("-")):
            chosen = neuron_map.general(layer) if block == "general" else neuron_map.specific(layer, block)
            gate = 1.0 if is_output else gates[0] if block == "general" else gates[1]
            if f"{block}_{key}" in blocks:
                delta = blocks[f"{block}_{key}"]
            elif f"{block}_{key}_A" in blocks:
                delta = blocks[f"{block}_{key}_B"] @ blocks[f"{block}_{key}_A"]
            else:
                assert not len(chosen)
                continue
            for part, rows in enumerate(delta.split(len(chosen))):
                for neuron, row in zip(chosen.tolist(), rows, strict=True):
                    if is_output:
                        weight(module)[:, neuron] += row
                    else:
                        weight(module)[neuron + part * neurons] += row
                        weight(module)[neuron + part * neurons] *= gate
            assert is_output or len(delta) == fused * len(chosen)
        if is_output and options.get("inactive_neurons") == "drop":
            weight(module)[:, groups["inactive"]] = 0


def test_training_changes_only_the_pairs_neurons(name: str, base: PreTrainedModel, neuron_map: NeuronMap) -> None:
    model = adapt(base, neuron_map, ["en-de"], seed=None).train()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.01, weight_decay=0.0)
    for step in range(2):
        model(input_ids=ids(seed=step), labels=ids(seed=step)).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    merged = model.merge_and_unload()
    touched = neuron_map.layers("en-de")
    changed = {key for key, value in merged.state_dict().items() if not value.equal(tiny(name).state_dict()[key])}
    architecture = ARCHITECTURES[name]
    names = [f"{key.format(layer)}.weight" for layer in touched for key in (*architecture.inputs, architecture.output)]
    assert changed == set(names)
    for layer in touched:
        inactive = neuron_groups(neuron_map, layer, "en-de")["inactive"]
        parts = range(architecture.fused)
        rows = torch.cat([inactive + part * len(neuron_map.neurons[layer].owner) for part in parts])
        (inputs, output), (old, old_output) = projections(merged, name, layer), projections(tiny(name), name, layer)
        assert all(weight(new)[rows].equal(weight(before)[rows]) for new, before in zip(inputs, old, strict=True))
        assert weight(output)[:, inactive].equal(weight(old_output)[:, inactive])


def test_save_and_load(name: str, base: PreTrainedModel, neuron_map: NeuronMap, tmp_path: Path) -> None:
    model = adapt(base, neuron_map, car="learned")
    model.save_pretrained(str(tmp_path))
    loaded = PeftModel.from_pretrained(copy.deepcopy(tiny(name)), str(tmp_path)).eval()
    assert logits(loaded, ids(), language_pairs=PAIRS).equal(logits(model, ids(), language_pairs=PAIRS))


def test_merging_is_exact(name: str, base: PreTrainedModel, neuron_map: NeuronMap) -> None:
    model = adapt(base, neuron_map, car="paper", inactive_neurons="drop")
    model.set_language_pair("en-de")
    expected = logits(model, ids())
    model.merge_adapter()
    torch.testing.assert_close(logits(model, ids()), expected, rtol=1e-4, atol=1e-4)
    model.unmerge_adapter()
    unloaded = model.unload()
    assert all(value.equal(tiny(name).state_dict()[key]) for key, value in unloaded.state_dict().items())


def test_weights_that_are_read_without_a_call_are_refused(tokenizer: PreTrainedTokenizerFast) -> None:
    """BLOOM with slow_but_exact slices the weight of its output projection, where hooks and deltas do not reach."""
    bloom = tiny("BLOOM")
    options = {**bloom.config.to_dict(), "slow_but_exact": True, "pretraining_tp": 2}
    model = transformers.BloomForCausalLM(transformers.BloomConfig(**options))
    with pytest.raises(ArchitectureError, match=r"does not call 'dense_4h_to_h'"):
        detect_neurons(model, tokenizer, SENTENCES, PAIRS, progress=False)
    with pytest.raises(ArchitectureError, match=r"load the model with slow_but_exact=False"):
        logits(adapt(model, language_pairs=["en-de"]), ids())


def test_generate_with_mixed_pairs(base: PreTrainedModel, neuron_map: NeuronMap) -> None:
    model = adapt(base, neuron_map)
    mask, options = torch.ones(3, 8, dtype=torch.long), {"max_new_tokens": 3, "min_new_tokens": 3, "do_sample": False}
    together = model.generate(input_ids=ids(), attention_mask=mask, language_pairs=PAIRS, **options)
    for row, pair in enumerate(PAIRS):
        alone = model.generate(
            input_ids=ids()[row : row + 1], attention_mask=mask[:1], language_pairs=[pair], **options
        )
        assert alone[0].equal(together[row])
