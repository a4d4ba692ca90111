"""The tuner: puts LSLo adapters into a model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from ..errors import AdapterError
from ..fingerprint import fingerprint_of
from ..routed.adapters import Part
from ..routed.bases import check_fingerprint
from ..routed.blocks import Blocks
from ..routed.config import RoutedConfig
from ..routed.state import State
from ..routed.tuner import RoutedTuner
from .adapters import join, restrict
from .config import LsloConfig
from .factors import LanguageFactors
from .layer import LsloLinear
from .metrics import training_metrics
from .targets import Target, filled, is_target, linear_layers, targets


class LsloModel(RoutedTuner):
    """Creates an LSLo model from a pretrained transformers model; usually made by `get_peft_model`.

    Args:
        model (`torch.nn.Module`): The model to be adapted.
        config ([`LsloConfig`]): The configuration of the adapter.
        adapter_name (`str`): The name of the adapter.

    Example:

        ```py
        >>> import peft_landermt
        >>> from peft import get_peft_model
        >>> config = LsloConfig(task_type="CAUSAL_LM", language_pairs=["en-de", "de-en"], rank=8)
        >>> model = get_peft_model(base_model, config)
        ```
    """

    prefix: str = "lslo_"
    _linear_layers: dict[str, nn.Module]
    _chosen: dict[str, Target]

    def _prepare_adapter_config(self, peft_config: LsloConfig, model_config: dict[str, Any]) -> LsloConfig:
        # The config stays as the caller made it; the adapter's own is filled for this model.
        name = [name for name, config in self.peft_config.items() if config is peft_config][-1]
        self.__dict__["_linear_layers"] = linear_layers(self.model)
        self.peft_config[name] = filled(peft_config, self.model, self._linear_layers)
        return self.peft_config[name]

    def _check_target_module_exists(self, peft_config: LsloConfig, key: str) -> Any:
        return is_target(peft_config, key, self._linear_layers)

    def _plan(self, peft_config: LsloConfig, model: nn.Module) -> dict[str, Blocks]:
        peft_config.check_is_whole()
        check_fingerprint(peft_config, model, lambda: fingerprint_of(self._linear_layers.items()), AdapterError)
        self.__dict__["_chosen"] = targets(peft_config, model, self._linear_layers)
        meta = (torch.device("meta"), torch.float32)
        return {
            name: LanguageFactors(each.word, each.ranks, each.inside, each.outside, *meta)
            for name, each in self._chosen.items()
        }

    def _create_and_replace(
        self,
        peft_config: LsloConfig,
        adapter_name: str,
        target: nn.Module,
        target_name: str,
        parent: nn.Module,
        current_key: str,
        parameter_name: str | None = None,
    ) -> None:
        layer = target if isinstance(target, LsloLinear) else LsloLinear(target, self.routing)
        chosen = self._chosen[current_key]
        layer.update_layer(
            adapter_name,
            chosen.word,
            chosen.ranks,
            peft_config.scaling,
            peft_config.dropout,
            peft_config.init_weights,
            inference_mode=peft_config.inference_mode,
        )
        if layer is not target:
            self._put(current_key, layer, adapter_name)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Run the base model; see [`RoutedTuner.forward`][peft_landermt.routed.tuner.RoutedTuner.forward]."""
        for layer in self._layers() if self.training else ():
            for blocks in layer.adapters.values():
                assert isinstance(blocks, LanguageFactors)
                # FSDP has split them, and gathers them when their layer is called
                blocks.all_take_part = any(hasattr(weight, "device_mesh") for weight in blocks.parameters())
        return super().forward(*args, **kwargs)

    def _metrics(self, adapter_name: str) -> dict[str, float]:
        layers = [layer for layer in self._layers() if isinstance(layer, LsloLinear) and layer.holds(adapter_name)]
        return training_metrics(layers, adapter_name, self.peft_config[adapter_name].pruned)

    @classmethod
    def parts(cls, adapter_name: str, config: RoutedConfig, by: str) -> list[str]:
        """List the parts that an adapter can be split into: its pairs, or by `"language"` its languages."""
        if by == "language":
            assert isinstance(config, LsloConfig)
            return config.held_languages
        return super().parts(adapter_name, config, by)

    @classmethod
    def restrict(cls, config: Any, state: Mapping[str, torch.Tensor], part: str) -> tuple[LsloConfig, State]:
        """Return config and state of one pair, or language, of an adapter."""
        return restrict(config, state, part)

    @classmethod
    def join(cls, parts: Sequence[Part]) -> tuple[LsloConfig, State]:
        """Return config and state of one adapter of parts that hold the same factors of what they both hold."""
        return join(parts)
