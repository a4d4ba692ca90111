"""The tuner: puts LANDER adapters into a model."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import nn

from ..ffn import check_addressable
from ..neuron_map import NeuronMap
from ..routed.layer import Blocks
from ..routed.tuner import RoutedTuner
from .config import LanderConfig
from .deltas import NeuronBlocks
from .layer import LanderFFN, rows_of_neuron
from .metrics import training_metrics
from .targets import as_ffn, check_base, check_options, default_targets, is_target


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
        meta = torch.device("meta")
        return {
            ffn.name: NeuronBlocks(
                peft_config.block_layout(ffn.name, ffn.neurons, ffn.width), rows_of_neuron(ffn), meta, torch.float32
            )
            for ffn in ffns
        }

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
            if adapter_name not in self.active_adapters:
                # adding an additional adapter: it is not automatically trainable
                layer.requires_grad_(False)
            self._replace_module(parent, target_name, layer, target)

    def _ffns(self) -> list[LanderFFN]:
        return [layer for layer in self._layers() if isinstance(layer, LanderFFN)]

    def row_parameters(self) -> list[nn.Parameter]:
        """List trainable delta rows of adapters whose general block is low-rank; they want a lower learning rate.

        Empty for adapters that have rows only, or factors only.
        """
        blocks = [layer.blocks(name) for layer in self._ffns() for name in layer.lander_blocks]
        return [row for each in blocks for row in each.rows_beside_factors() if row.requires_grad]

    def training_metrics(self) -> dict[str, float]:
        """Tell what training has done to the active adapters so far, as scalars for a log.

        Returns:
            `change_{block}`: ‖ΔW‖ / ‖W‖ over the block's neurons, for `general` and every language. With a gate also
            `gate_general_{pair}` and `gate_specific_{pair}`, means over layers and over the tokens trained on since
            the last call. With several active adapters, names begin with the adapter's.
        """
        several = len(self.active_adapters) > 1
        return {
            f"{adapter}/{name}" if several else name: value
            for adapter in self.active_adapters
            for name, value in training_metrics(self._ffns(), adapter).items()
        }
