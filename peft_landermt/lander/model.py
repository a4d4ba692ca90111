"""The tuner: puts LANDER adapters into a model."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from ..ffn import FFN, check_addressable
from ..neuron_map import NeuronMap
from ..routed.adapters import Part
from ..routed.blocks import Blocks
from ..routed.state import State
from ..routed.tuner import RoutedTuner
from .adapters import join, restrict
from .config import LanderConfig
from .deltas import NeuronBlocks
from .layer import LanderFFN, rows_of_neuron
from .metrics import training_metrics
from .shared import LanderAttention, SharedFactors
from .targets import as_ffn, attention_beside, check_base, check_options, default_targets, is_target


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
        # The config stays as the caller made it; default targets are kept here.
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
            for name, attention in attention_beside(model, ffn, peft_config).items():
                options = (peft_config.attention_modules or (), peft_config.attention_rank, layout.language_pairs)
                plan[name] = SharedFactors(attention, *options, *meta)
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
        layer = target
        if not isinstance(layer, LanderFFN):
            layer = LanderFFN(as_ffn(target, current_key, peft_config.layout), self.routing)
        counts = (peft_config.neuron_counts or {}).get(current_key)
        neuron_map = peft_config.neuron_map if isinstance(peft_config.neuron_map, NeuronMap) else None
        layer.update_layer(
            adapter_name,
            peft_config.block_layout(current_key, layer.neurons, layer.width),
            neuron_map=neuron_map,
            layer=counts["layer"] if counts else 0,
            init_weights=peft_config.init_weights,
            inference_mode=peft_config.inference_mode,
        )
        if layer is not target:
            self._put(parent, target_name, layer, adapter_name)
        self._adapt_attention(peft_config, adapter_name, layer.ffn(current_key))

    def _adapt_attention(self, peft_config: LanderConfig, adapter_name: str, ffn: FFN) -> None:
        """Adapt the attention beside an FFN; not by PEFT's search, which looks into no adapted layer (OPT's)."""
        pairs = peft_config.block_layout(ffn.name, ffn.neurons, ffn.width).language_pairs
        for name, attention in attention_beside(self.model, ffn, peft_config).items():
            layer = target = self.model.get_submodule(name)
            if not isinstance(layer, LanderAttention):
                layer = LanderAttention(attention, self.routing)
            layer.update_layer(
                adapter_name,
                peft_config.attention_modules or (),
                peft_config.attention_rank,
                pairs,
                init_weights=peft_config.init_weights,
                inference_mode=peft_config.inference_mode,
            )
            if layer is not target:
                parent, _, last = name.rpartition(".")
                self._put(self.model.get_submodule(parent), last, layer, adapter_name)

    def _metrics(self, adapter_name: str) -> dict[str, float]:
        return training_metrics(self._layers(), adapter_name)

    @classmethod
    def restrict(
        cls, config: LanderConfig, state: Mapping[str, torch.Tensor], part: str
    ) -> tuple[LanderConfig, State]:
        """Return config and state of one pair of an adapter."""
        return restrict(config, state, part)

    @classmethod
    def join(cls, parts: Sequence[Part]) -> tuple[LanderConfig, State]:
        """Return config and state of one adapter of parts with different pairs, that were trained together."""
        return join(parts)
