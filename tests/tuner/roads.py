"""Roads on which an adapter folder gets into a model, and whether a model is as it was."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from torch import nn
from transformers import PreTrainedModel

from peft_landermt import NeuronMap, hotswap_adapter

from ..conftest import build_model
from .helpers import adapt, cloned_state, make_config, same_state


def first(model: nn.Module, folder: Path) -> Any:
    return PeftModel.from_pretrained(model, str(folder))


def second(model: PeftModel, folder: Path) -> Any:
    return model.load_adapter(str(folder), adapter_name="second")


def over_itself(model: PeftModel, folder: Path) -> Any:
    return model.load_adapter(str(folder), adapter_name="default")


def hotswap(model: PeftModel, folder: Path) -> Any:
    return hotswap_adapter(model, folder)


def by_transformers(model: PreTrainedModel, folder: Path) -> Any:
    return model.load_adapter(str(folder))


def plain(neuron_map: NeuronMap) -> nn.Module:
    return build_model("llama")


def with_another(neuron_map: NeuronMap) -> nn.Module:
    return adapt(build_model("llama"), neuron_map, ["en-fr"], adapter_name="good", modules_to_save=["lm_head"])


def with_one_of_the_form(neuron_map: NeuronMap) -> nn.Module:
    model = adapt(build_model("llama"), neuron_map, ["en-de"], seed=7, modules_to_save=["lm_head"])
    model.add_adapter("good", make_config(neuron_map, ["en-fr"], modules_to_save=["lm_head"]))
    return model


ROADS = {
    "from_pretrained": (plain, first),
    "load_adapter": (with_another, second),
    "load_adapter, a loaded name": (with_one_of_the_form, over_itself),
    "hotswap_adapter": (with_one_of_the_form, hotswap),
    "transformers": (plain, by_transformers),
}


def snapshot(model: nn.Module) -> Any:
    configs = {name: config.to_dict() for name, config in getattr(model, "peft_config", {}).items()}
    return (
        [(name, type(module), module.training) for name, module in model.named_modules()],
        [(name, parameter.requires_grad, parameter.data_ptr()) for name, parameter in model.named_parameters()],
        sorted(vars(model)),
        configs,
        cloned_state(model),
    )


def assert_as_before(model: nn.Module, before: Any) -> None:
    after = snapshot(model)
    assert after[:-1] == before[:-1]
    # bit for bit, also where a value is not a number
    assert same_state(
        *({key: value.view(torch.uint8) for key, value in state[-1].items()} for state in (before, after))
    )
