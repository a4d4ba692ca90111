"""By which language layers are indexed: the default, what is given, and what is learned."""

from __future__ import annotations

import pytest
import torch
from peft import LoraConfig, get_peft_model

from peft_landermt import learned_index
from peft_landermt.errors import AdapterError, ArchitectureError, ConfigError
from peft_landermt.lslo.index import Position, count_layers, in_words, position_of, written_out
from peft_landermt.lslo.learned import learned_weights

from ..conftest import PAIRS
from ..tuner.helpers import ids
from .helpers import adapt, build, layers_of, make_config

# what comes before the first number tells the stack
NAMES = {
    "model.layers.3.self_attn.q_proj": (False, Position("decoder", 3)),
    "transformer.h.11.mlp.c_fc": (False, Position("decoder", 11)),
    "model.encoder.layers.3.fc1": (True, Position("encoder", 3)),
    "model.decoder.layers.0.encoder_attn.k_proj": (True, Position("decoder", 0)),
    "decoder.block.2.layer.1.EncDecAttention.k": (True, Position("decoder", 2)),
    "encoder.block.0.layer.0.SelfAttention.q": (True, Position("encoder", 0)),
    "lm_head": (False, None),
    "shared.0.linear": (True, None),
}


@pytest.mark.parametrize("name", NAMES)
def test_positions(name: str) -> None:
    two_stacks, place = NAMES[name]
    assert position_of(name, two_stacks) == place


@pytest.mark.parametrize(("layers", "sources"), [(12, 9), (6, 4), (4, 3), (2, 1), (1, 0)])
def test_the_default_of_an_encoder_decoder(layers: int, sources: int) -> None:
    """The lower three quarters of the encoder: 9 of 12, as the paper found."""
    assert written_out(None, {"encoder": layers, "decoder": 2}) == {
        "encoder": ["source"] * sources + ["target"] * (layers - sources),
        "decoder": ["target"] * 2,
    }


def test_written_out() -> None:
    assert written_out(None, {"decoder": 3}) == ["target"] * 3
    assert written_out("source", {"decoder": 2}) == ["source"] * 2
    assert written_out("learned", {"encoder": 1, "decoder": 2}) == {"encoder": ["learned"], "decoder": ["learned"] * 2}
    assert written_out(["source", "target"], {"decoder": 2}) == ["source", "target"]
    for wrong in (["source"], {"encoder": ["source"] * 2, "decoder": ["target"] * 2}):
        with pytest.raises(ConfigError, match="give a word for each"):
            written_out(wrong, {"decoder": 2})
    with pytest.raises(ConfigError, match="give a word for each"):
        written_out(["source"] * 4, {"encoder": 2, "decoder": 2})
    with pytest.raises(ArchitectureError, match="numbered layer"):
        count_layers(["encoder.layers.0.fc1"], True)


def test_in_few_words() -> None:
    index = {"encoder": ["source"] * 9 + ["target"] * 3, "decoder": ["target"]}
    assert in_words(index) == "encoder: source 0-8, target 9-11; decoder: target 0"
    assert (in_words(None), in_words("source"), in_words(["source", "target"])) == (
        "default", "source", "source 0, target 1",
    )  # fmt: skip


@pytest.mark.parametrize("architecture", ["llama", "m2m100"])
def test_what_was_learned_can_be_given(architecture: str) -> None:
    """By the mean of the layer's modules; where both are equal, the target."""
    model = adapt(build(architecture), PAIRS, index="learned", seed=None)
    stacks = model.peft_config["default"].index
    even = learned_index(model)
    flat = even if isinstance(even, list) else [word for words in even.values() for word in words]
    assert set(flat) == {"target"}
    layers = layers_of(model)
    first = [name for name in layers if position_of(name, architecture == "m2m100") == _first(architecture)]
    with torch.no_grad():
        for name in first[:-1]:
            layers[name].blocks("default").index_logits.copy_(torch.tensor([1.0, 0.0]))
        layers[first[-1]].blocks("default").index_logits.copy_(torch.tensor([-1.0, 0.0]))  # outvoted
    found = learned_index(model)
    expected = written_out("target", _counts(stacks))
    (expected if isinstance(expected, list) else expected["encoder"])[0] = "source"
    assert found == expected
    assert adapt(build(architecture), PAIRS, index=found).peft_config["default"].index == found
    weights = learned_weights(model)
    assert all(source + target == pytest.approx(1) for layers in weights.values() for source, target in layers)


def _first(architecture: str) -> Position:
    return Position("encoder" if architecture == "m2m100" else "decoder", 0)


def _counts(index: object) -> dict[str, int]:
    return {k: len(v) for k, v in index.items()} if isinstance(index, dict) else {"decoder": len(index)}  # type: ignore[arg-type]


def test_an_index_that_was_not_learned() -> None:
    with pytest.raises(AdapterError, match="was not learned"):
        learned_index(adapt(build("llama"), PAIRS))
    lora = get_peft_model(build("llama"), LoraConfig(task_type="CAUSAL_LM", target_modules=["q_proj"]))
    for model, name in ((adapt(build("llama"), PAIRS), "other"), (lora, "default")):
        with pytest.raises(AdapterError, match="is no LSLo adapter"):
            learned_index(model, name)


@pytest.mark.parametrize("side", [pytest.param("source", marks=pytest.mark.slow), "target"])
def test_training_finds_the_side_that_labels_depend_on(side: str) -> None:
    """Of four directions, whatever the words: one token for each language of one side."""
    torch.manual_seed(0)
    pairs = ["en-de", "fr-de", "en-it", "fr-it"]
    base = build("llama")
    model = get_peft_model(base, make_config(base, pairs, index="learned", rank=4)).train()
    optimizer = torch.optim.Adam([weight for weight in model.parameters() if weight.requires_grad], lr=1e-2)
    tokens = {"en": 10, "fr": 20, "de": 10, "it": 20}
    for step in range(25):
        batch = ids(4, seed=step)
        wanted = [tokens[pair.split("-")[side == "target"]] for pair in pairs]
        labels = torch.tensor(wanted).unsqueeze(1).expand_as(batch)
        optimizer.zero_grad()
        model(input_ids=batch, labels=labels, language_pairs=pairs).loss.backward()
        optimizer.step()
    found = learned_weights(model)["decoder"]
    mean = sum(weights[side == "target"] for weights in found) / len(found)
    assert learned_index(model) == [side] * 4 and mean > 0.5
