"""The tuner: puts LANDER adapters into a model."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from ..ffn import FFN, check_addressable
from ..neuron_map import NeuronMap
from ..routed.adapters import Part
from ..routed.blocks import Blocks
from ..routed.layer import RoutedLayer
from ..routed.state import State
from ..routed.tuner import RoutedTuner
from .adapters import join
from .config import AUTO, LanderConfig
from .deltas import NeuronBlocks
from .layer import LanderFFN, rows_of_neuron
from .metrics import training_metrics
from .selecting import for_pairs, tensors_for_pairs
from .shared import LanderAttention, SharedFactors
from .targets import (
    as_ffn,
    attention_beside,
    check_base,
    check_options,
    choose_attention,
    default_targets,
    ffns_with_attention,
    is_target,
)


class LanderModel(RoutedTuner):
    """Creates a LANDER model from a pretrained transformers model; usually made by `get_peft_model`.

    Args:
        model (`torch.nn.Module`): The model to be adapted.
        config ([`LanderConfig`]): The configuration of the adapter.
        adapter_name (`str`): The name of the adapter.

    Example:

        ```py
        >>> import peft_landermt
        >>> from peft import get_peft_model
        >>> config = LanderConfig(task_type="CAUSAL_LM", neuron_map="map.safetensors", language_pairs=["en-de"])
        >>> model = get_peft_model(base_model, config)
        ```
    """

    prefix: str = "lander_"

    def _prepare_adapter_config(self, peft_config: LanderConfig, model_config: dict[str, Any]) -> LanderConfig:
        if peft_config.attention_modules == AUTO:
            peft_config.attention_modules = choose_attention(self.model, peft_config)
        # else the config stays as the caller made it; default targets are kept here
        if peft_config.target_modules is None and peft_config.neuron_counts is None:
            self.__dict__["default_targets"] = default_targets(self.model, peft_config.layout)
        return peft_config

    def _check_target_module_exists(self, peft_config: LanderConfig, key: str) -> Any:
        return is_target(peft_config, key, self.__dict__.get("default_targets"))

    def _plan(self, peft_config: LanderConfig, model: nn.Module) -> dict[str, Blocks]:
        check_base(peft_config, model)
        ffns = []
        for key, module in model.named_modules():
            inside_adapter = ".base_layer" in key or ".lander_" in key
            if not inside_adapter and self._check_target_module_exists(peft_config, key):
                ffns.append(as_ffn(module, key, peft_config.layout))
                check_options(peft_config, ffns[-1])
        adapted = {layer.base_layer for layer in self._layers()}
        check_addressable(model, [ffn for ffn in ffns if ffn.module not in adapted])
        if peft_config.changes_fresh_output and peft_config.neuron_map is not None:
            warnings.warn(
                f"car={peft_config.car!r} with inactive_neurons={peft_config.inactive_neurons!r} changes the model's "
                "output before any training.",
                stacklevel=2,
            )
        meta = (torch.device("meta"), torch.float32)
        plan: dict[str, Blocks] = {}
        for ffn in ffns:
            layout = peft_config.block_layout(ffn.name, ffn.neurons, ffn.width)
            plan[ffn.name] = NeuronBlocks(layout, rows_of_neuron(ffn), *meta)
        beside = ffns_with_attention(model, ffns, peft_config)
        self.__dict__["beside_attention"] = {ffn.name: ffn for ffn in beside}
        for ffn in beside:
            layout = peft_config.attention_layout(ffn)
            for name, attention in attention_beside(model, ffn, layout).items():
                plan[name] = SharedFactors(attention, layout, *meta)
        return plan

    def _create_and_replace(
        self,
        peft_config: LanderConfig,
        adapter_name: str,
        target: nn.Module,
        target_name: str,
        parent: nn.Module,
        current_key: str,
        parameter_name: str | None = None,
    ) -> None:
        self._adapt(peft_config, adapter_name, current_key)

    def _adapt(self, config: LanderConfig, adapter_name: str, name: str) -> None:
        """Give an adapter its blocks at an FFN, by the module's name, and at the attention beside it."""
        layer = target = self.model.get_submodule(name)
        if not isinstance(layer, LanderFFN):
            layer = LanderFFN(as_ffn(target, name, config.layout), self.routing)
        counts = (config.neuron_counts or {}).get(name)
        layer.update_layer(
            adapter_name,
            config.block_layout(name, layer.neurons, layer.width),
            neuron_map=config.neuron_map if isinstance(config.neuron_map, NeuronMap) else None,
            layer=counts["layer"] if counts else 0,
            init_weights=config.init_weights,
            inference_mode=config.inference_mode,
        )
        if layer is not target:
            self._put(name, layer, adapter_name)
        self._adapt_attention(config, adapter_name, name)

    def _adapt_attention(self, peft_config: LanderConfig, adapter_name: str, adapted: str) -> None:
        """Adapt the attention beside an FFN, or with the first one all; not by PEFT's search, which looks into no
        adapted layer (OPT's)."""
        waiting: dict[str, FFN] = self.__dict__["beside_attention"]
        for name in list(waiting) if peft_config.adapts_all_attention else [adapted]:
            if (ffn := waiting.pop(name, None)) is None:
                continue
            layout = peft_config.attention_layout(ffn)
            for place, attention in attention_beside(self.model, ffn, layout).items():
                if not ffn.has_own_module and not isinstance(self.model.get_submodule(name), LanderFFN):
                    self._put(name, LanderFFN(ffn, self.routing), adapter_name)  # so that places are always the same
                layer = target = self.model.get_submodule(place)
                if not isinstance(layer, LanderAttention):
                    layer = LanderAttention(attention, self.routing)
                layer.update_layer(
                    adapter_name,
                    layout,
                    init_weights=peft_config.init_weights,
                    inference_mode=peft_config.inference_mode,
                )
                if layer is not target:
                    self._put(place, layer, adapter_name)

    def reform_adapter(self, adapter_name: str, config: LanderConfig) -> None:
        """Give an adapter the blocks that another config asks for; what both configs have stays, bit for bit.

        Args:
            adapter_name: The adapter, which is in the model.
            config: Its config from now on. Blocks that are new take their neurons from its `neuron_map`.

        Raises:
            LanderError: The config does not fit the model; nothing is changed.
            ConcurrencyError: Another thread's call is in progress.
        """
        with self.routing.writing("changing an adapter's blocks"):
            plan = self._plan(config, self.model)
            trains = {parameter: parameter.requires_grad for parameter in self.model.parameters()}
            dtype = next(each.dtype for layer in self._layers_of(adapter_name) for each in layer.adapters.parameters())
            self.peft_config[adapter_name] = config
            for name in [name for name, blocks in plan.items() if isinstance(blocks, NeuronBlocks)]:
                self._adapt(config, adapter_name, name)
            self.__dict__.pop("_found", None)
            for name, layer in self.model.named_modules():
                if isinstance(layer, RoutedLayer) and layer.holds(adapter_name) and name not in plan:
                    del layer.adapters[adapter_name]
            for parameter, requires_grad in trains.items():
                parameter.requires_grad_(requires_grad)
            for layer in self._layers_of(adapter_name):
                layer._active_adapter, layer._disable_adapters = self.active_adapters, self._is_disabled()
                for parameter in layer.blocks(adapter_name).parameters():
                    parameter.data = parameter.data.to(dtype)
                layer.blocks(adapter_name).train(layer.training)
            self.set_requires_grad(adapter_name, adapter_name in self.active_adapters and not config.inference_mode)
            self.routing.pairs[adapter_name] = tuple(config.language_pairs or ())
            if self.routing.chosen.get(adapter_name) not in self.routing.pairs[adapter_name]:
                self.routing.chosen.pop(adapter_name, None)

    def _layers_of(self, adapter_name: str) -> Iterator[RoutedLayer]:
        return (layer for layer in self._layers() if layer.holds(adapter_name))

    def _metrics(self, adapter_name: str) -> dict[str, float]:
        return training_metrics(self._layers(), adapter_name)

    @classmethod
    def restrict(
        cls, config: LanderConfig, state: Mapping[str, torch.Tensor], part: str
    ) -> tuple[LanderConfig, State]:
        """Return config and state of one pair of an adapter."""
        chosen = for_pairs(config, [part])
        chosen.inference_mode = True
        return chosen, tensors_for_pairs(config, chosen, state)

    @classmethod
    def join(cls, parts: Sequence[Part]) -> tuple[LanderConfig, State]:
        """Return config and state of one adapter of parts with different pairs, that were trained together."""
        return join(parts)
