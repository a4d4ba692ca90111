"""Every architecture that the docs name, on a tiny random model of four FFN layers, built from its own config; and two
whose FFNs only the user can name."""

from __future__ import annotations

import copy
import re
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

from peft_landermt import LanderConfig, NeuronMap, detect_neurons
from peft_landermt.errors import ArchitectureError, ConfigError
from peft_landermt.ffn import FFNLayout, find_ffns

from ..conftest import DECODER_SIZES, PAIRS, SENTENCES, VOCABULARY
from ..versions import TRANSFORMERS_4
from .helpers import adapt, ids, lander_layers, logits, neuron_groups

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")


@dataclass(frozen=True)
class Architecture:
    """Names of the transformers classes, of the modules that hold projections, and of the projections there; and how
    the config names its sizes."""

    model: str
    config: str
    layers: tuple[str, ...]
    inputs: tuple[str, ...]
    output: str
    options: tuple[tuple[str, Any], ...] = ()
    fused: int = 1
    ffn: Callable[[], nn.Module] | None = None
    """What takes the place of the FFNs, for one that transformers does not have."""

    @property
    def ffn_layout(self) -> dict[str, Any] | None:
        """What the user has to name."""
        return None if self.ffn is None else FFNLayout(self.inputs, self.output, fused=self.fused).to_dict()


class ChannelMix(nn.Module):
    """RWKV's: beside the neurons a square projection, whose shape no rule could tell from theirs."""

    def __init__(self) -> None:
        super().__init__()
        self.key, self.receptance, self.value = nn.Linear(32, 64), nn.Linear(32, 32), nn.Linear(64, 32)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        return self.receptance(hidden).sigmoid() * self.value(self.key(hidden).relu() ** 2)


class FusedGate(nn.Module):
    """xFormers' SwiGLU: d→2p and p→d, under names that say nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.w12, self.w3 = nn.Linear(32, 128), nn.Linear(64, 32)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        gate, up = self.w12(hidden).chunk(2, dim=-1)
        return self.w3(F.silu(gate) * up)


def decoder(
    name: str,
    layer: str = "model.layers.{}.mlp",
    projections: str = "gate_proj up_proj down_proj",
    config: str | None = None,
    model: str | None = None,
    fused: int = 1,
    ffn: Callable[[], nn.Module] | None = None,
    **options: Any,
) -> Architecture:
    *inputs, output = projections.split()
    layers = tuple(layer.format(index) for index in range(4))
    model, config = model or f"{name}ForCausalLM", config or f"{name}Config"
    return Architecture(model, config, layers, tuple(inputs), output, tuple(options.items()), fused, ffn)


def bart_like(name: str, config: str, **options: Any) -> Architecture:
    """Two layers in each stack, their projections beside attention."""
    sizes = {f"{stack}_{key}": size for stack in ("encoder", "decoder") for key, size in _STACK.items()}
    layers = tuple(f"model.{stack}.layers.{index}" for stack in ("encoder", "decoder") for index in range(2))
    options = {**sizes, "init_std": 0.2, "decoder_start_token_id": 2, "d_model": 32, **options}
    return Architecture(name, config, layers, ("fc1",), "fc2", tuple(options.items()))


def t5_like(name: str, inputs: str, **options: Any) -> Architecture:
    """Two layers in each stack; cross-attention makes the decoder's FFN the third part of its layer."""
    places = [("encoder", 1), ("decoder", 2)]
    layers = tuple(
        f"{stack}.block.{index}.layer.{place}.DenseReluDense" for stack, place in places for index in range(2)
    )
    sizes = {"d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 2, "num_heads": 4}
    options = {**sizes, "dropout_rate": 0.0, "decoder_start_token_id": 0, **options}
    model, config = f"{name}ForConditionalGeneration", f"{name}Config"
    return Architecture(model, config, layers, tuple(inputs.split()), "wo", tuple(options.items()))


_STACK = {"layers": 2, "attention_heads": 4, "ffn_dim": 64}
FOUR_H = "dense_h_to_4h dense_4h_to_h"
FUSED = "gate_up_proj down_proj"
ARCHITECTURES: dict[str, Architecture] = {
    "Llama (EuroLLM, Tower, SmolLM)": decoder("Llama"),
    "Mistral": decoder("Mistral", head_dim=8),
    "Qwen 2": decoder("Qwen2"),
    "Qwen 3": decoder("Qwen3", head_dim=8),
    "Gemma": decoder("Gemma", head_dim=8),
    "Gemma 2": decoder("Gemma2", head_dim=8, query_pre_attn_scalar=8),
    "Gemma 3": decoder("Gemma3", config="Gemma3TextConfig", head_dim=8),
    "Cohere (Aya)": decoder("Cohere"),
    "StableLM": decoder("StableLm"),
    "OLMo 2": decoder("Olmo2"),
    "SmolLM 3": decoder("SmolLM3"),
    "BLOOM": decoder("Bloom", "transformer.h.{}.mlp", FOUR_H),
    "BLOOM, slow_but_exact": decoder("Bloom", "transformer.h.{}.mlp", FOUR_H, slow_but_exact=True),
    "GPT-2": decoder("GPT2", "transformer.h.{}.mlp", "c_fc c_proj", model="GPT2LMHeadModel", n_inner=64),
    "GPT-NeoX (Pythia)": decoder("GPTNeoX", "gpt_neox.layers.{}.mlp", FOUR_H),
    "Falcon": decoder("Falcon", "transformer.h.{}.mlp", FOUR_H, ffn_hidden_size=64),
    "MPT": decoder(
        "Mpt", "transformer.blocks.{}.ffn", "up_proj down_proj", d_model=32, n_heads=4, n_layers=4, expansion_ratio=2
    ),
    "OPT": decoder("OPT", "model.decoder.layers.{}", "fc1 fc2", ffn_dim=64, word_embed_proj_dim=32, init_std=0.2),
    "XGLM": decoder(
        "XGLM", "model.layers.{}", "fc1 fc2", d_model=32, ffn_dim=64, num_layers=4, attention_heads=4, init_std=0.2
    ),
    "Phi 2": decoder("Phi", projections="fc1 fc2"),
    "Phi-3": decoder("Phi3", projections=FUSED, fused=2),
    "GLM-4": decoder("Glm", projections=FUSED, fused=2, head_dim=8, pad_token_id=0),
    "NLLB, M2M100": bart_like("M2M100ForConditionalGeneration", "M2M100Config"),
    "mBART": bart_like("MBartForConditionalGeneration", "MBartConfig"),
    "Marian": bart_like("MarianMTModel", "MarianConfig"),
    "T5": t5_like("T5", "wi"),
    "T5 v1.1, MADLAD": t5_like("T5", "wi_0 wi_1", feed_forward_proj="gated-gelu"),
    "mT5": t5_like("MT5", "wi_0 wi_1"),
    "named: RWKV's channel mix": decoder("Llama", projections="key value", ffn=ChannelMix),
    "named: xFormers' SwiGLU": decoder("Llama", projections="w12 w3", fused=2, ffn=FusedGate),
}
ENCODER_DECODERS = ("NLLB, M2M100", "mBART", "Marian", "T5", "T5 v1.1, MADLAD", "mT5")
_DROPOUT = (
    "dropout",
    "attention_dropout",
    "resid_pdrop",
    "embd_pdrop",
    "attn_pdrop",
    "activation_dropout",
    "encoder_layerdrop",
    "decoder_layerdrop",
)
_ALIASES = {
    "d_model": ("hidden_size",),
    "num_layers": ("num_hidden_layers",),
    "num_heads": ("num_attention_heads",),
    "encoder_layers": ("num_hidden_layers", "num_attention_heads"),
}


@cache
def tiny(name: str) -> PreTrainedModel:
    architecture = ARCHITECTURES[name]
    torch.manual_seed(0)
    options = {**DECODER_SIZES, **dict.fromkeys(_DROPOUT, 0.0), **dict(architecture.options)}
    for known, others in _ALIASES.items():
        for other in others if known in options else ():
            options.pop(other, None)
    model = getattr(transformers, architecture.model)(getattr(transformers, architecture.config)(**options))
    for layer in architecture.layers if architecture.ffn is not None else ():
        model.set_submodule(layer, architecture.ffn())
    for key, parameter in model.named_parameters():
        if key.endswith("bias"):
            nn.init.normal_(parameter, std=0.2)
    return model.eval()


@cache
def found(name: str, tokenizer: PreTrainedTokenizerFast) -> NeuronMap:
    num_layers = 1 if name in ENCODER_DECODERS else 2
    return detect_neurons(
        tiny(name),
        tokenizer,
        SENTENCES,
        PAIRS,
        num_layers=num_layers,
        general_ratio=0.7,
        progress=False,
        ffn_layout=ARCHITECTURES[name].ffn_layout,
    )


ALIKE = (
    *("Mistral", "Qwen 2", "Gemma", "Gemma 2", "Cohere (Aya)", "StableLM", "OLMo 2", "SmolLM 3"),
    *("BLOOM, slow_but_exact", "XGLM", "GLM-4", "mBART", "Marian", "mT5"),
)
"""Architectures whose FFNs have the form of another one's; they run with the slow tests."""


@pytest.fixture(params=[pytest.param(n, marks=pytest.mark.slow) if n in ALIKE else n for n in ARCHITECTURES])
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
    module = model.get_submodule(architecture.layers[layer])
    return [module.get_submodule(key) for key in architecture.inputs], module.get_submodule(architecture.output)


def test_ffns_are_found(name: str, base: PreTrainedModel) -> None:
    named = ARCHITECTURES[name].ffn_layout
    ffns = find_ffns(base, named and FFNLayout.from_dict(named))
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
    if name in ENCODER_DECODERS:
        encoder = naive_awareness(name, base, [translation_loss(base, tokenizer, *row) for row in FROM_GERMAN])
        decoder = naive_awareness(name, base, [translation_loss(base, tokenizer, *row) for row in INTO_GERMAN])
        expected = [*encoder[:2], *decoder[2:]]
    else:
        expected = naive_awareness(name, base, [sentence_loss(base, tokenizer, text) for text in SENTENCES["de"]])
    for layer, awareness in enumerate(expected):
        found = neuron_map.neurons[layer].awareness[1]
        torch.testing.assert_close(found, awareness / awareness.sum(), rtol=1e-4, atol=1e-6)


FROM_GERMAN = [("de", target, n) for n, target in enumerate(["fr", "en", "fr", "en"])]
"""Languages en, de, fr: sentence 0 goes to the next language, sentence 1 to the one after, and so on."""
INTO_GERMAN = [(source, "de", n) for n, source in enumerate(["en", "fr", "en", "fr"])]
Loss = Callable[[], tuple[torch.Tensor, int]]


def sentence_loss(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, text: str) -> Loss:
    """The sum over the predicted tokens of a sentence, and their number."""
    tokens = torch.tensor([tokenizer(text)["input_ids"]])

    def loss() -> tuple[torch.Tensor, int]:
        summed = F.cross_entropy(model(tokens).logits[0, :-1], tokens[0, 1:], reduction="sum")
        return summed, tokens.shape[1] - 1

    return loss


def translation_loss(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, source: str, target: str, n: int
) -> Loss:
    names = {"en": "English", "de": "German", "fr": "French"}
    prompt = f"translate {names[source]} to {names[target]}: {SENTENCES[source][n]}"
    ids, labels = (torch.tensor([tokenizer(text)["input_ids"]]) for text in (prompt, SENTENCES[target][n]))

    def loss() -> tuple[torch.Tensor, int]:
        return model(input_ids=ids, labels=labels).loss * labels.numel(), labels.numel()

    return loss


def naive_awareness(name: str, model: PreTrainedModel, losses: list[Loss]) -> list[torch.Tensor]:
    """| dL/dh_i · h_i | of every layer, mean over the tokens, with L the mean over what is predicted."""
    hidden: list[list[torch.Tensor]] = [[] for _ in range(4)]

    def keep(layer: int) -> Callable[..., None]:
        def hook(_module: nn.Module, args: tuple[torch.Tensor, ...]) -> None:
            args[0].retain_grad()
            hidden[layer].append(args[0])

        return hook

    handles = [projections(model, name, layer)[1].register_forward_pre_hook(keep(layer)) for layer in range(4)]
    sums, counts = zip(*(loss() for loss in losses), strict=True)
    (sum(sums) / sum(counts)).backward()
    for handle in handles:
        handle.remove()
    return [torch.cat([(h.grad * h).detach().flatten(0, -2) for h in layer]).abs().mean(dim=0) for layer in hidden]


@pytest.mark.parametrize("options", [{}, {"general_rank": None}, {"car": "learned"}], ids=str)
def test_a_fresh_adapter_changes_nothing(
    base: PreTrainedModel, neuron_map: NeuronMap, options: dict[str, Any]
) -> None:
    expected = logits(base, ids())
    assert logits(adapt(base, neuron_map, seed=None, **options), ids(), language_pairs=PAIRS).equal(expected)


@pytest.mark.parametrize(
    "options",
    [
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


@pytest.mark.parametrize("name", ["OPT", "XGLM", "NLLB, M2M100", "mBART", "Marian"])
def test_gates_of_the_token_need_an_ffn_of_its_own(base: PreTrainedModel, neuron_map: NeuronMap) -> None:
    """Where projections sit on a layer beside attention, that layer cannot be run twice."""
    expected, kinds = logits(base, ids()), [type(module) for module in base.modules()]
    with pytest.raises(ConfigError, match=r"car='token': needs an FFN that is a module of its own, which .* has not"):
        adapt(base, neuron_map, car="token")
    assert logits(base, ids()).equal(expected) and [type(module) for module in base.modules()] == kinds


def write_by_hand(
    name: str, model: nn.Module, neuron_map: NeuronMap, layer: int, pair: str, layers: Any, options: dict[str, Any]
) -> None:
    groups = neuron_groups(neuron_map, layer, pair)
    car = neuron_map.car(layer, pair)
    gates = {"paper": (car, 1 - car), "proportional": (1 - car, car)}.get(options.get("car", "off"), (1.0, 1.0))
    blocks = dict(layers[neuron_map.neurons[layer].name].lander_blocks["default"].named_parameters())
    inputs, output = projections(model, name, layer)
    fused, neurons = ARCHITECTURES[name].fused, len(neuron_map.neurons[layer].owner)
    names = (*ARCHITECTURES[name].inputs, ARCHITECTURES[name].output)
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
    keys = (*architecture.inputs, architecture.output)
    assert changed == {f"{architecture.layers[layer]}.{key}.weight" for layer in touched for key in keys}
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


@pytest.mark.parametrize("num_beams", [1, 2])
def test_generate_with_mixed_pairs(base: PreTrainedModel, neuron_map: NeuronMap, num_beams: int) -> None:
    model = adapt(base, neuron_map)
    options = {"max_new_tokens": 3, "min_new_tokens": 3, "do_sample": False, "num_beams": num_beams}
    mask = torch.ones(3, 8, dtype=torch.long)
    together = model.generate(input_ids=ids(), attention_mask=mask, language_pairs=PAIRS, **options)
    for row, pair in enumerate(PAIRS):
        alone = model.generate(
            input_ids=ids()[row : row + 1], attention_mask=mask[:1], language_pairs=[pair], **options
        )
        assert alone[0].equal(together[row])


@pytest.mark.parametrize("use_reentrant", [True, False])
def test_gradient_checkpointing(base: PreTrainedModel, neuron_map: NeuronMap, use_reentrant: bool) -> None:
    if not base.supports_gradient_checkpointing:
        pytest.skip(f"transformers has no gradient checkpointing for {type(base).__name__}")
    if TRANSFORMERS_4 and use_reentrant and base.config.model_type == "m2m_100":
        pytest.skip("transformers 4 has no inputs that require gradients in M2M100's decoder, for any PEFT method")
    model = adapt(base, neuron_map, general_rank=4).train()
    trained = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}

    def gradients() -> dict[str, torch.Tensor]:
        model.zero_grad()
        model(input_ids=ids(), labels=ids(), language_pairs=PAIRS).loss.backward()
        return {name: parameter.grad.clone() for name, parameter in trained.items() if parameter.grad is not None}

    expected = gradients()
    model.gradient_checkpointing_enable({"use_reentrant": use_reentrant})
    model.enable_input_require_grads()
    found = gradients()
    assert found.keys() == expected.keys() and found
    for name, gradient in found.items():
        torch.testing.assert_close(gradient, expected[name], rtol=1e-4, atol=1e-5)


def test_the_docs_name_what_is_tested_here() -> None:
    text = (Path(__file__).parents[2] / "docs" / "architectures.md").read_text(encoding="utf-8")
    tested = " ".join(text.split("## Encoder-decoders")[0].split())
    named = [name for name in ARCHITECTURES if name != "BLOOM, slow_but_exact" and not name.startswith("named: ")]
    assert [name for name in named if name not in tested] == []


NAMED = [name for name in ARCHITECTURES if name.startswith("named: ")]


@pytest.mark.parametrize("name", NAMED)
def test_what_only_the_user_can_name_is_refused_with_the_candidates(
    name: str, base: PreTrainedModel, tokenizer: PreTrainedTokenizerFast
) -> None:
    layout = ARCHITECTURES[name].ffn_layout
    message = re.escape(
        f"Say which it is with ffn_layout, in detect_neurons or LanderConfig: {layout} (model.layers.0.mlp"
    )
    with pytest.raises(ArchitectureError, match=f"no FFN was recognised in it. {message}, p=64"):
        detect_neurons(base, tokenizer, SENTENCES, PAIRS, progress=False)
    with pytest.raises(ArchitectureError, match=message):
        adapt(base)
    with pytest.raises(ArchitectureError, match=r"target_modules='model\.layers\.0\.mlp'.* with ffn_layout"):
        adapt(base, target_modules=["mlp"])
    assert not lander_layers(base)


@pytest.mark.parametrize("name", NAMED)
def test_a_named_layout_goes_where_the_adapter_goes(
    name: str, base: PreTrainedModel, neuron_map: NeuronMap, tmp_path: Path
) -> None:
    """Through a saved map and a saved adapter, and without a map."""
    neuron_map.save(tmp_path / "map.safetensors")
    model = adapt(base, NeuronMap.load(tmp_path / "map.safetensors"))
    layout = ARCHITECTURES[name].ffn_layout
    assert model.peft_config["default"].ffn_layout == layout
    model.save_pretrained(str(tmp_path))
    loaded = PeftModel.from_pretrained(copy.deepcopy(tiny(name)), str(tmp_path)).eval()
    assert logits(loaded, ids(), language_pairs=PAIRS).equal(logits(model, ids(), language_pairs=PAIRS))
    assert len(lander_layers(adapt(copy.deepcopy(tiny(name)), ffn_layout=layout, target_modules=["mlp"]))) == 4
    assert len(lander_layers(adapt(copy.deepcopy(tiny(name)), ffn_layout=layout))) == 4


def test_layouts_that_contradict_each_other(neuron_map_of_rwkv: NeuronMap) -> None:
    other = {"inputs": ["receptance"], "output": "value"}
    with pytest.raises(ConfigError, match=r"ffn_layout=\{'inputs': \['receptance'\].*: the neuron map has .*'key'"):
        LanderConfig(neuron_map=neuron_map_of_rwkv, ffn_layout=other)
    model = adapt(copy.deepcopy(tiny(NAMED[0])), neuron_map_of_rwkv)
    with pytest.raises(
        ArchitectureError, match=r"ffn_layout=.*receptance.*: model.layers.\d.mlp has adapters with .*key"
    ):
        model.add_adapter("other", LanderConfig(ffn_layout=other, target_modules=list(lander_layers(model))))


@pytest.fixture
def neuron_map_of_rwkv(tokenizer: PreTrainedTokenizerFast) -> NeuronMap:
    return found(NAMED[0], tokenizer)


EXPERTS = {
    "Mixtral": {"num_local_experts": 4},
    "Qwen2Moe": {"num_experts": 4, "moe_intermediate_size": 16, "shared_expert_intermediate_size": 64},
    "Qwen3Moe": {"num_experts": 4, "moe_intermediate_size": 16, "head_dim": 8},
}


def build_mixture(kind: str) -> PreTrainedModel:
    torch.manual_seed(0)
    config = getattr(transformers, f"{kind}Config")(**DECODER_SIZES, **EXPERTS[kind])
    return getattr(transformers, f"{kind}ForCausalLM")(config).eval()


@pytest.mark.parametrize("kind", EXPERTS)
def test_mixtures_of_experts_are_refused(kind: str, tokenizer: PreTrainedTokenizerFast) -> None:
    model = build_mixture(kind)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    message = r"model='.*': model\.layers\.0\.\w+\.experts is a mixture of experts, .* the dense FFNs beside it"
    with pytest.raises(ArchitectureError, match=message):
        detect_neurons(model, tokenizer, SENTENCES, PAIRS, progress=False)
    with pytest.raises(ArchitectureError, match=message):
        adapt(model)
    after = model.state_dict()
    assert after.keys() == before.keys() and all(value.equal(before[key]) for key, value in after.items())


def test_the_shared_expert_of_a_mixture_can_be_named() -> None:
    model = build_mixture("Qwen2Moe")
    expected = logits(model, ids())
    adapted = adapt(model, seed=None, target_modules=["shared_expert"])
    assert [name.rpartition(".")[2] for name in lander_layers(adapted)] == ["shared_expert"] * 4
    assert logits(adapted, ids()).equal(expected)
    assert not logits(adapt(build_mixture("Qwen2Moe"), target_modules=["shared_expert"]), ids()).equal(expected)


def test_one_expert_cannot_be_named() -> None:
    config = transformers.SwitchTransformersConfig(vocab_size=VOCABULARY, d_model=32, d_kv=8, d_ff=64, num_experts=4)
    model = transformers.SwitchTransformersForConditionalGeneration(config)
    with pytest.raises(ArchitectureError, match=r"target_modules='.*experts\.expert_0': is a part of a mixture"):
        adapt(model, target_modules=["expert_0"])
