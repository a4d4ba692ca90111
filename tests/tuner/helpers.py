"""What the tuner tests share: batches, adapters, recorded FFN calls, and an FFN written out group by group."""

from __future__ import annotations

import os
import socket
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from peft import PeftModel, get_peft_model
from torch import nn
from transformers import PreTrainedModel

from peft_landermt import LanderConfig, LanderFFN, NeuronMap

from ..conftest import PAIRS, VOCABULARY, randomize_adapter

KINDS: dict[str, list[str] | None] = {"no-map": None, "one-pair": ["en-de"], "several-pairs": PAIRS}
"""What adapters differ in most: no neuron map, or a map with one or several pairs."""


LOOPBACK = socket.if_nameindex()[0][1]
"""The first interface of a machine, for gloo, which else takes the one that the machine's name resolves to."""


def join_processes(rank: int, world: int, folder: Path) -> None:
    """Make this process one of `world` that talk over gloo; not in a hurry, but not for ever either."""
    os.environ["GLOO_SOCKET_IFNAME"] = LOOPBACK
    store, limit = f"file://{folder}/store", timedelta(seconds=60)
    dist.init_process_group("gloo", init_method=store, rank=rank, world_size=world, timeout=limit)
    torch.set_num_threads(1)


def ids(rows: int = 3, length: int = 8, seed: int = 0) -> torch.Tensor:
    """Random tokens, none of them special."""
    return torch.randint(3, VOCABULARY, (rows, length), generator=torch.Generator().manual_seed(seed))


def logits(model: nn.Module, input_ids: torch.Tensor, **kwargs: Any) -> torch.Tensor:
    """Of the given tokens; an encoder-decoder reads them in its encoder, and backwards in its decoder."""
    if model.config.is_encoder_decoder:
        kwargs = {"decoder_input_ids": input_ids.flip(1), **kwargs}
    with torch.no_grad():
        return model(input_ids=input_ids, **kwargs).logits


PLACES: dict[str, Any] = {
    "projections": "all",
    "specific_rank": None,
    "attention_modules": None,
    "attention_layers": "relevant",
}
"""Where and in what form adapters of tests tune, as the paper has it; `"default"` behaviours have the defaults."""


def make_config(
    neuron_map: NeuronMap | None = None,
    language_pairs: Sequence[str] | None = None,
    task_type: str = "CAUSAL_LM",
    **options: Any,
) -> LanderConfig:
    """The paper's places and forms, with factors for the general neurons, where options name no others."""
    pairs = list(language_pairs) if language_pairs is not None else None
    options = {**PLACES, **options}
    return LanderConfig(task_type=task_type, neuron_map=neuron_map, language_pairs=pairs, **options)


def adapt(
    base: PreTrainedModel,
    neuron_map: NeuronMap | None = None,
    language_pairs: Sequence[str] | None = None,
    *,
    seed: int | None = 1,
    adapter_name: str = "default",
    **options: Any,
) -> PeftModel:
    """`base` with one adapter, in evaluation mode; deltas and gates are random unless `seed` is None."""
    if base.config.is_encoder_decoder:
        options = {"task_type": "SEQ_2_SEQ_LM", **options}
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*changes the model's output before any training")
        model = get_peft_model(base, make_config(neuron_map, language_pairs, **options), adapter_name)
    if seed is not None:
        randomize_adapter(model, seed=seed)
    return model.eval()


def adapt_kind(base: PreTrainedModel, neuron_map: NeuronMap, kind: str, **options: Any) -> PeftModel:
    """An adapter of one of `KINDS`."""
    return adapt(base, None if kind == "no-map" else neuron_map, KINDS[kind], **options)


def side_by_side(base: PreTrainedModel, neuron_map: NeuronMap, kind: str, names: Sequence[str]) -> PeftModel:
    """One adapter of one of `KINDS` per name, each with other values; the last is active."""
    model = adapt_kind(base, neuron_map, kind, adapter_name=names[0])
    for seed, name in enumerate(names[1:], 2):
        model.add_adapter(name, make_config(None if kind == "no-map" else neuron_map, KINDS[kind]))
        model.set_adapter(name)
        randomize_adapter(model, seed=seed)
    return model.eval()


def two_adapters(base: PreTrainedModel, neuron_map: NeuronMap, **options: Any) -> PeftModel:
    """An adapter for en-de and one for en-fr, which is active."""
    model = adapt(base, neuron_map, ["en-de"], adapter_name="en-de", **options)
    model.add_adapter("en-fr", make_config(neuron_map, ["en-fr"], **options))
    model.set_adapter("en-fr")
    randomize_adapter(model, seed=2)
    return model.eval()


def route(kind: str) -> dict[str, list[str]]:
    """Keywords that a forward of three samples needs with an adapter of one of `KINDS`."""
    return {"language_pairs": PAIRS} if kind == "several-pairs" else {}


def lander_layers(model: nn.Module) -> dict[str, LanderFFN]:
    """Adapted FFNs by their name in the base model."""
    found = {name: module for name, module in model.named_modules() if isinstance(module, LanderFFN)}
    return {name.removeprefix("base_model.model."): module for name, module in found.items()}


def same_state(first: Mapping[str, torch.Tensor], second: Mapping[str, torch.Tensor]) -> bool:
    """Same keys, same types, same bits."""
    return first.keys() == second.keys() and all(
        first[key].dtype == second[key].dtype and torch.equal(first[key], second[key]) for key in first
    )


def cloned_state(model: nn.Module) -> dict[str, torch.Tensor]:
    return {key: value.clone() for key, value in model.state_dict().items()}


@contextmanager
def recorded_calls(model: nn.Module) -> Iterator[dict[str, tuple[torch.Tensor, torch.Tensor | None, torch.Tensor]]]:
    """Input x, residual where the FFN takes one, and output of every adapted FFN; the last call counts."""
    calls: dict[str, tuple[torch.Tensor, torch.Tensor | None, torch.Tensor]] = {}
    handles = []
    for name, layer in lander_layers(model).items():

        def hook(_module: nn.Module, args: Any, kwargs: Any, output: torch.Tensor, name: str = name) -> None:
            given = [*args, *kwargs.values()]
            calls[name] = (given[0].detach(), given[1].detach() if len(given) > 1 else None, output.detach())

        handles.append(layer.register_forward_hook(hook, with_kwargs=True))
    try:
        yield calls
    finally:
        for handle in handles:
            handle.remove()


def layer_index(neuron_map: NeuronMap, name: str) -> int:
    return [entry.name for entry in neuron_map.neurons].index(name)


def neuron_groups(neuron_map: NeuronMap, layer: int, pair: str) -> dict[str, torch.Tensor]:
    """Neurons that are general, specific to the pair's languages, and of other languages, from `owner` alone (eq. 5);
    all inactive where the layer is not relevant to the pair (eq. 2)."""
    owner = neuron_map.neurons[layer].owner
    if layer not in neuron_map.pair_layers[pair]:
        return {"inactive": torch.arange(len(owner))}
    ours = [neuron_map.languages.index(language) for language in pair.split("-")]
    members = {
        "general": [i for i, o in enumerate(owner.tolist()) if o == -1],
        "specific": [i for i, o in enumerate(owner.tolist()) if o in ours],
        "inactive": [i for i, o in enumerate(owner.tolist()) if o != -1 and o not in ours],
    }
    return {group: torch.tensor(neurons, dtype=torch.long) for group, neurons in members.items()}


def dense_deltas(
    layer: LanderFFN, neuron_map: NeuronMap, index: int, pair: str | None, adapter_name: str = "default"
) -> dict[str, torch.Tensor]:
    """Delta rows (p, d) of every projection for one pair, zero where a neuron is not tuned for it, and everywhere
    without a pair."""
    parameters = {name: value.detach() for name, value in layer.lander_blocks[adapter_name].named_parameters()}
    blocks = {"general": neuron_map.general(index)}
    blocks.update({language: neuron_map.specific(index, language) for language in (pair or "").split("-") if language})
    dense = {}
    for projection in layer.projection_names:
        dense[projection] = torch.zeros(layer.neurons, layer.width)
        for block, neurons in blocks.items() if pair is not None else ():
            key = f"{block}_{projection}"
            if key in parameters:
                rows = parameters[key]
            elif f"{key}_A" in parameters:
                rows = parameters[f"{key}_B"] @ parameters[f"{key}_A"]
            else:
                continue
            # with tune="layers" all neurons are in the general block
            dense[projection][neurons if len(rows) == len(neurons) else slice(None)] = rows
    return dense


def unmerged_weights(model: PeftModel) -> dict[str, torch.Tensor]:
    """Weights of the base model inside, by their names in it."""
    state = model.get_base_model().state_dict()
    return {key.replace(".base_layer", ""): value.clone() for key, value in state.items() if ".lander_" not in key}


def dense_sum(model: PeftModel, neuron_map: NeuronMap, pairs: Mapping[str, str]) -> dict[str, torch.Tensor]:
    """Base weights plus the deltas of each adapter for its pair, in float32, by their names in the base model."""
    weights = {key: value.float() for key, value in unmerged_weights(model).items()}
    for name, layer in lander_layers(model).items():
        for adapter in pairs.keys() & layer.lander_blocks.keys():
            deltas = dense_deltas(layer, neuron_map, layer_index(neuron_map, name), pairs[adapter], adapter)
            for projection, delta in deltas.items():
                weights[f"{name}.{projection}.weight"] += delta.t() if projection == layer.output_name else delta
    return weights


def activation(layer: LanderFFN, values: list[torch.Tensor]) -> torch.Tensor:
    """h: SwiGLU for Llama, GeGLU for Gemma 3, GELU for BLOOM (both GELUs are the tanh approximation)."""
    function = F.silu if type(layer.base_layer).__name__ == "LlamaMLP" else lambda x: F.gelu(x, approximate="tanh")
    return function(values[0]) * values[1] if len(values) == 2 else function(values[0])


def base_projection(layer: LanderFFN, name: str) -> nn.Module:
    """A projection of the base FFN, without what adapts it."""
    projection = layer.base_layer.get_submodule(name)
    return getattr(projection, "base_layer", projection)


def base_hidden(layer: LanderFFN, x: torch.Tensor) -> torch.Tensor:
    """h of the base FFN."""
    projections = [base_projection(layer, name) for name in layer.input_names]
    return activation(layer, [F.linear(x, projection.weight, projection.bias) for projection in projections]).detach()


def naive_ffn(
    layer: LanderFFN,
    x: torch.Tensor,
    groups: Mapping[str, torch.Tensor],
    deltas: Mapping[str, torch.Tensor],
    input_gates: Mapping[str, Any] | None = None,
    delta_gates: Mapping[str, Any] | None = None,
    drop: bool = False,
    residual: torch.Tensor | None = None,
) -> torch.Tensor:
    """FFN_G(c_G x) + FFN_S(c_S x) + FFN_inactive(x): one small FFN per group of neurons (eq. 7 to 9).

    Args:
        groups: Neurons of every group.
        deltas: (p, d) per projection, added to the base weights times the group's gate in `delta_gates` (1).
        input_gates: Factor c of the input x per group (1).
        drop: Whether the inactive group is left out.
    """
    output = base_projection(layer, layer.output_name)
    total = torch.zeros(*x.shape[:-1], layer.width)
    for group, neurons in groups.items():
        if group == "inactive" and drop:
            continue
        scaled = (input_gates or {}).get(group, 1.0) * x
        gate = (delta_gates or {}).get(group, 1.0)
        values = []
        for name in layer.input_names:
            projection = base_projection(layer, name)
            value = scaled @ projection.weight[neurons].t() + gate * (scaled @ deltas[name][neurons].t())
            values.append(value if projection.bias is None else value + projection.bias[neurons])
        hidden = activation(layer, values)
        total = total + hidden @ output.weight[:, neurons].t() + gate * (hidden @ deltas[layer.output_name][neurons])
    if output.bias is not None:
        total = total + output.bias
    return (total if residual is None else total + residual).detach()
