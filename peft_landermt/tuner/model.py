"""The tuner: puts LANDER adapters into a model and routes its calls."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from peft.tuners.tuners_utils import BaseTuner
from torch import nn

from ..errors import AdapterError, ArchitectureError, LanguagePairError
from ..ffn import check_addressable
from ..neuron_map import NeuronMap
from .blocks import BlockLayout
from .calls import batch_size, bind_route_to_checkpoints, drop_language_pairs, saved_modules_routed
from .config import LanderConfig
from .layer import LanderFFN
from .monitor import training_metrics
from .routing import Routing
from .sharing import share_equal_tensors
from .state import as_saved, find_missing, take_back, validate_state
from .targets import as_ffn, check_base, check_fingerprint, check_options, default_targets, is_target


class LanderModel(BaseTuner):
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
    tuner_layer_cls = LanderFFN
    target_module_mapping: dict[str, list[str]] = {}

    @property
    def routing(self) -> Routing:
        """Routing state of the model, shared by its adapted FFNs."""
        if "_routing" not in self.__dict__:
            layers = self._layers()
            self.__dict__["_routing"] = layers[0].routing if layers else Routing()
        return self.__dict__["_routing"]

    def _layers(self) -> list[LanderFFN]:
        return [module for module in self.model.modules() if isinstance(module, LanderFFN)]

    # Making adapters

    def _prepare_adapter_config(self, peft_config: LanderConfig, model_config: dict[str, Any]) -> LanderConfig:
        # The config stays as the caller made it; default targets are kept here.
        if peft_config.target_modules is None and peft_config.neuron_counts is None:
            self.__dict__["default_targets"] = default_targets(self.model, peft_config.layout)
        return peft_config

    def _check_target_module_exists(self, peft_config: LanderConfig, key: str) -> Any:
        return is_target(peft_config, key, self.__dict__.get("default_targets"))

    def _prepare_model(self, peft_config: LanderConfig, model: nn.Module) -> None:
        """Check everything that injection relies on, before the first module is touched."""
        if not self._layers():
            self.__dict__["_trainable_before"] = [weight for weight in model.parameters() if weight.requires_grad]
        if peft_config.neuron_counts is not None:
            check_base(peft_config, model)
            check_fingerprint(peft_config, model)
        fresh = []
        for key, module in model.named_modules():
            inside_adapter = ".base_layer" in key or ".lander_" in key
            if not inside_adapter and self._check_target_module_exists(peft_config, key):
                ffn = as_ffn(module, key, peft_config.layout)
                check_options(peft_config, ffn)
                fresh += [ffn] if ffn.module is module else []
        check_addressable(model, fresh)
        if peft_config.changes_fresh_output and peft_config.neuron_map is not None:
            warnings.warn(
                f"car={peft_config.car!r} with inactive_neurons={peft_config.inactive_neurons!r} changes the model's "
                "output before any training.",
                stacklevel=2,
            )

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
        self.routing.pairs[adapter_name] = tuple(peft_config.language_pairs or ())
        layer.update_layer(
            adapter_name,
            BlockLayout.for_config(peft_config, counts, layer.neurons, layer.width),
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

    def _replace_module(self, parent: nn.Module, child_name: str, new_module: nn.Module, child: nn.Module) -> None:
        # The layer makes its adapters on the device of the FFN, so nothing is left to move.
        setattr(parent, child_name, new_module)

    def delete_adapter(self, adapter_name: str) -> None:
        active = self.active_adapters
        super().delete_adapter(adapter_name)
        if adapter_name in active:
            # PEFT asks the first layer what is active now, but adapters need not share a layer
            left = [name for name in active if name != adapter_name] or sorted(self.peft_config)[:1]
            self.set_adapter(left)
        self.routing.pairs.pop(adapter_name, None)
        self.routing.chosen.pop(adapter_name, None)

    # Routing calls

    @property
    def routed_language_pairs(self) -> list[str]:
        """Pairs that calls can name now: those of the one active adapter; none while it is merged."""
        layers = self._layers()
        if len(self.active_adapters) != 1 or any(layer.merged for layer in layers):
            return []
        return list(self.routing.pairs.get(self.active_adapters[0], ()))

    def routing_arguments(
        self, language_pairs: Sequence[str], adapter_names: Sequence[str] | None = None
    ) -> dict[str, list[str | None]]:
        """What a call is to be given so that every sample takes its pair; checks that the model serves the pairs.

        Args:
            language_pairs: One for every sample.
            adapter_names: For every sample the adapter that the call will name; the active ones by default.

        Returns:
            `{"language_pairs": [...]}`, or nothing where samples need not be told apart: adapters are switched off or
            merged, or have no pairs, or serve one pair only.

        Raises:
            LanguagePairError: An adapter that a sample would take does not hold its pair, or was merged for another.
        """
        layers = self._layers()
        if any(layer.disable_adapters for layer in layers):
            return {}
        merged = dict.fromkeys(name for layer in layers for name in layer.merged_adapters)
        return self.routing.arguments(language_pairs, adapter_names, self.active_adapters, list(merged))

    def set_language_pair(self, language_pair: str | None) -> None:
        """Choose the pair that all samples take when a call names none; None takes the choice back.

        Args:
            language_pair: A pair of every active adapter.

        Raises:
            LanguagePairError: If an active adapter does not hold it.
        """
        if language_pair is not None:
            for name in self.active_adapters:
                self.routing.check_pair(name, language_pair)
        if any(layer.merged for layer in self._layers()):
            raise LanguagePairError(
                "language_pair", language_pair, "the model is merged; call unmerge_adapter() first."
            )
        for name in self.active_adapters:
            if language_pair is None:
                self.routing.chosen.pop(name, None)
            else:
                self.routing.chosen[name] = language_pair

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Forward of the base model; the route is made by `_enable_peft_forward_hooks`, for most models in PEFT."""
        if self.routing.route is None and kwargs.get("language_pairs") is not None:
            with self._enable_peft_forward_hooks(*args, **kwargs):  # PEFT hands MPT's calls on without it
                return self.forward(*args, **kwargs)
        kwargs.pop("language_pairs", None)
        self._check_route(args, kwargs)
        return self.model(*args, **kwargs)

    def _check_route(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        # PEFT does not always show the inputs when the route is made
        if self.routing.route is not None:
            self.routing.route.check_length(batch_size(args, kwargs))

    def generate(self, *args: Any, **kwargs: Any) -> Any:
        """`generate` of the base model; the route was made by `_enable_peft_forward_hooks`.

        Weights with their deltas folded in, and deltas put together for products, are kept from token to token.
        """
        kwargs.pop("language_pairs", None)
        self._check_route(args, kwargs)
        self.routing.kept = {}
        try:
            return self.model.generate(*args, **kwargs)
        finally:
            self.routing.kept = None

    @contextmanager
    def _enable_peft_forward_hooks(self, *args: Any, **kwargs: Any) -> Iterator[None]:
        """PEFT enters this around `forward` and `generate`, with their arguments."""
        language_pairs, adapter_names = kwargs.get("language_pairs"), kwargs.get("adapter_names")
        previous = self.routing.route
        if language_pairs is None and adapter_names is None:
            route = None
        else:
            if any(layer.merged for layer in self._layers()):
                raise LanguagePairError(
                    "language_pairs", language_pairs, "the model is merged for one pair; call unmerge_adapter() first."
                )
            batch = batch_size(args, kwargs)
            route = self.routing.make_route(self.active_adapters, language_pairs, adapter_names, batch)
        self.routing.route = route
        restore = bind_route_to_checkpoints(self.model, self.routing, route, adapter_names)
        drop = self.model.register_forward_pre_hook(drop_language_pairs, with_kwargs=True)
        try:
            with saved_modules_routed(self.model, adapter_names):
                yield
        finally:
            drop.remove()
            restore()
            self.routing.route = previous

    # Merging

    def merge_adapter(self, adapter_names: list[str] | None = None, safe_merge: bool = False) -> None:
        self._check_all_mergeable(adapter_names, safe_merge)
        super().merge_adapter(adapter_names=adapter_names, safe_merge=safe_merge)

    def _unload_and_optionally_merge(
        self,
        merge: bool = True,
        progressbar: bool = False,
        safe_merge: bool = False,
        adapter_names: list[str] | None = None,
    ) -> nn.Module:
        if merge:
            self._check_all_mergeable(adapter_names, safe_merge)
        else:
            for layer in self._layers():
                if layer.merged:
                    layer.unmerge()
        return super()._unload_and_optionally_merge(merge, progressbar, safe_merge, adapter_names)

    def _check_all_mergeable(self, adapter_names: list[str] | None, safe_merge: bool) -> None:
        """Look at every layer before the first is written."""
        uses = Counter(id(weight) for module in self.model.modules() for weight in module._parameters.values())
        for layer in self._layers():
            names = adapter_names if adapter_names is not None else layer.active_adapters
            layer.check_mergeable([name for name in names if name not in layer.merged_adapters], safe_merge)
            for projection in layer.projection_names if any(name in layer.lander_blocks for name in names) else ():
                if uses[id(layer.base_layer.get_submodule(projection)._parameters["weight"])] > 1:
                    raise ArchitectureError(
                        "base_layer",
                        f"{projection} with tied weight",
                        "another layer uses the same weight and would change with it; give each its own first.",
                    )

    # Training

    def row_parameters(self) -> list[nn.Parameter]:
        """Trainable delta rows of adapters whose general block is low-rank; they want a lower learning rate.

        Empty for adapters that have rows only, or factors only.
        """
        rows: list[nn.Parameter] = []
        for layer in self._layers():
            for name in layer.lander_blocks:
                rows.extend(layer.blocks(name).rows_beside_factors())
        return [row for row in rows if row.requires_grad]

    def training_metrics(self) -> dict[str, float]:
        """What training has done to the active adapters so far, as scalars for a log.

        Returns:
            `change_{block}`: ‖ΔW‖ / ‖W‖ over the block's neurons, for `general` and every language. With a gate also
            `gate_general_{pair}` and `gate_specific_{pair}`, means over layers and over the tokens trained on since
            the last call. With several active adapters, names begin with the adapter's.
        """
        layers, several = self._layers(), len(self.active_adapters) > 1
        return {
            f"{adapter}/{name}" if several else name: value
            for adapter in self.active_adapters
            for name, value in training_metrics(layers, adapter).items()
        }

    # State

    def _cast_adapter_dtype(self, adapter_name: str, autocast_adapter_dtype: bool = True) -> None:
        # the last thing that PEFT does with an adapter it has made or loaded
        super()._cast_adapter_dtype(adapter_name, autocast_adapter_dtype=autocast_adapter_dtype)
        loaded = [
            name
            for name, config in self.peft_config.items()
            if getattr(config, "_weights", None) == "loaded" and config.inference_mode
        ]
        if adapter_name in loaded:
            share_equal_tensors(self._layers(), adapter_name, [name for name in loaded if name != adapter_name])

    @classmethod
    def _get_adapter_state_dict(
        cls,
        model: nn.Module,
        config: LanderConfig,
        adapter_name: str,
        state_dict: dict[str, torch.Tensor],
        unwanted_adapter_names: list[str],
    ) -> dict[str, torch.Tensor]:
        selected = super()._get_adapter_state_dict(model, config, adapter_name, state_dict, unwanted_adapter_names)
        # PEFT drops keys by the names of other adapters; one named "1" would take layer 1 with it.
        selected = {**selected, **find_missing(model, adapter_name, selected)}
        return {key: as_saved(key, value, config, model) for key, value in selected.items()}

    @classmethod
    def _remap_adapter_state_dict_for_load(
        cls, model: nn.Module, config: LanderConfig, adapter_name: str, state_dict: dict[str, torch.Tensor]
    ) -> dict[str, torch.Tensor]:
        remapped = super()._remap_adapter_state_dict_for_load(model, config, adapter_name, state_dict)
        try:
            validate_state(model, adapter_name, remapped)
        except AdapterError:
            if config._weights == "awaited":
                take_back(model, adapter_name)
            raise
        if config._weights == "awaited":
            config._weights = "loaded"
        return remapped
