"""An FFN with LANDER adapters around it."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from peft.tuners.tuners_utils import BaseTunerLayer, check_adapters_to_merge, onload_layer
from torch import nn

from ..errors import ArchitectureError, ConfigError
from ..ffn import FFN
from ..linear import device_and_dtype, has_dense_weight
from ..neuron_map import NeuronMap
from .blocks import BlockLayout, NeuronBlocks
from .groups import Group, check_additive
from .merging import merged_weight
from .projections import AdaptedProjection, InputRecorder
from .routing import INPUT_DEPENDENT, Routing, Rows


class LanderFFN(nn.Module, BaseTunerLayer):
    """Wraps the FFN of a base model, stored as `base_layer`, and reuses its forward.

    During a call the FFN's projections are replaced by adapted ones; residuals, dropout, activation and remote code
    are the base FFN's own.

    Args:
        ffn: The FFN, with its module.
        routing: Routing state, shared by all adapted FFNs of the model.
    """

    adapter_layer_names = ("lander_blocks",)
    other_param_names = ()

    def __init__(self, ffn: FFN, routing: Routing) -> None:
        super().__init__()
        self.base_layer = ffn.module
        self.input_names, self.output_name = ffn.inputs, ffn.output
        self.neurons, self.width, self.fused = ffn.neurons, ffn.width, ffn.fused
        self.routing = routing
        self.lander_blocks = nn.ModuleDict()
        self._disable_adapters = False
        self._active_adapter: str | list[str] = []
        self.merged_adapters: list[str] = []
        self._unmerged_weights: dict[str, torch.Tensor] = {}
        self.training = ffn.module.training

    def update_layer(
        self,
        adapter_name: str,
        layout: BlockLayout,
        neuron_map: NeuronMap | None = None,
        layer: int = 0,
        init_weights: bool = True,
        inference_mode: bool = False,
    ) -> None:
        """Add an adapter.

        Args:
            adapter_name: Its name.
            layout: Sizes and options of its blocks.
            neuron_map: Where neuron indices and awareness come from; None if they will be loaded.
            layer: Index of this FFN in the neuron map.
            init_weights: Whether the adapter starts without effect on the weights.
            inference_mode: Whether it stays frozen.
        """
        device, dtype = self.device_and_dtype()
        parts = {name: 1 if name == self.output_name else self.fused for name in self.projection_names}
        blocks = NeuronBlocks(layout, parts, device, dtype, init_weights)
        if neuron_map is not None:
            blocks.read_neuron_map(neuron_map, layer)
        self.lander_blocks[adapter_name] = blocks
        self.set_adapter(self.active_adapters, inference_mode=inference_mode)

    @property
    def projection_names(self) -> tuple[str, ...]:
        return (*self.input_names, self.output_name)

    def ffn(self, name: str) -> FFN:
        """The wrapped FFN, under a name."""
        names = (self.input_names, self.output_name)
        return FFN(name, self.base_layer, *names, self.width, self.neurons, self.fused)

    def blocks(self, adapter_name: str) -> NeuronBlocks:
        """The blocks of an adapter."""
        blocks = self.lander_blocks[adapter_name]
        assert isinstance(blocks, NeuronBlocks)
        return blocks

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Forward of the base FFN with the active adapters, or with those that the call's route names."""
        if self.disable_adapters:
            if self.merged:
                self.unmerge()
            return self.base_layer(*args, **kwargs)
        if self.merged:
            return self.base_layer(*args, **kwargs)
        if any("_hf_hook" in blocks.__dict__ for blocks in self.lander_blocks.values()):
            with onload_layer(self.lander_blocks):  # PEFT offloads an adapter with the base it is loaded into
                return self._adapted_forward(args, kwargs)
        return self._adapted_forward(args, kwargs)

    def _adapted_forward(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        states = next(value for value in (*args, *kwargs.values()) if isinstance(value, torch.Tensor))
        groups = self.routing.keep((id(self), states.shape[0], states.device), lambda: self._groups(states))
        if not groups:
            return self.base_layer(*args, **kwargs)
        for group in groups:
            group.blocks.own_trainable_tensors()
        if any(group.blocks.layout.car == "token" for group in groups):
            self._set_token_gates(groups, args, kwargs)
        with self._adapted_projections(groups, states.shape[0]), self._adapted_recomputation(groups, states.shape[0]):
            return self.base_layer(*args, **kwargs)

    def _groups(self, states: torch.Tensor) -> list[Group]:
        route = self.routing.route
        rows: list[Rows | None] = []
        if route is not None:
            known = [name for name in route.adapters if name in self.lander_blocks]
            rows = [route.rows(name, self.blocks(name), states.shape[0], states.device) for name in known]
        else:
            for name in self.active_adapters:
                if name in self.lander_blocks:
                    pair = self.routing.pair_of(name)
                    rows.append(Rows(name, (pair,)) if self.blocks(name).layout.concerns(pair) else None)
        groups = [Group(row, self.blocks(row.adapter)) for row in rows if row is not None]
        if route is None and len(groups) > 1:
            check_additive([(group.rows.adapter, group.blocks.layout) for group in groups])
        return groups

    @contextmanager
    def _adapted_projections(self, groups: list[Group], batch: int) -> Iterator[None]:
        modules = self.base_layer._modules
        originals = {name: modules[name] for name in self.projection_names}
        try:
            for name, base in originals.items():
                assert base is not None
                if isinstance(base, AdaptedProjection):
                    base.called = True  # by the one that takes its place within a checkpointed decoder layer
                    base = base.base
                modules[name] = self._adapted(name, base, groups, batch)
            yield
            for name in originals:
                if not modules[name].called:  # type: ignore[union-attr]
                    raise ArchitectureError(
                        "model",
                        name,
                        f"{type(self.base_layer).__name__} reads its weight without calling it, so deltas would be "
                        "lost; for BLOOM, load the model with slow_but_exact=False.",
                    )
        finally:
            modules.update(originals)

    def _adapted(self, name: str, base: nn.Module, groups: list[Group], batch: int) -> AdaptedProjection:
        keep, is_output = self.routing.keep, name == self.output_name
        key = (id(self), name, id(groups), batch)
        adapted = keep(key, lambda: AdaptedProjection(base, name, groups, batch, is_output, keep))
        adapted.called = False
        return adapted

    @contextmanager
    def _adapted_recomputation(self, groups: list[Group], batch: int) -> Iterator[None]:
        """Where the FFN's projections sit on a decoder layer (OPT), gradient checkpointing recomputes inside of it,
        after this call; then too it must see the adapted projections."""
        layer = self.base_layer
        original = layer.__dict__.get("_gradient_checkpointing_func")
        if original is None or not layer.training:
            yield
            return

        def adapted(function: Any, *args: Any, **kwargs: Any) -> Any:
            with self._adapted_projections(groups, batch):
                return function(*args, **kwargs)

        layer.__dict__["_gradient_checkpointing_func"] = lambda function, *args, **kwargs: original(
            partial(adapted, function), *args, **kwargs
        )
        try:
            yield
        finally:
            layer.__dict__["_gradient_checkpointing_func"] = original

    @torch.no_grad()
    def _set_token_gates(self, groups: list[Group], args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        """Run the base FFN up to its output projection and make each token's gates from the activations there."""
        modules = self.base_layer._modules
        output = modules[self.output_name]
        assert output is not None
        recorder = InputRecorder(output)
        modules[self.output_name] = recorder
        try:
            self.base_layer(*args, **kwargs)
        finally:
            modules[self.output_name] = output
        for group in groups:
            if group.blocks.layout.car == "token":
                group.set_delta_gates(recorder.seen)

    def check_mergeable(self, adapter_names: list[str], safe_merge: bool = False) -> None:
        """Raise if one of the adapters cannot be merged here; change nothing.

        Raises:
            ConfigError: A gate depends on the input, or the FFN's weights cannot be written.
            LanguagePairError: An adapter holds several pairs and none was chosen.
            ValueError: With `safe_merge`, if merged weights would not be finite.
        """
        here = [name for name in adapter_names if name in self.lander_blocks]
        for name in here:
            car = self.blocks(name).layout.car
            if car in INPUT_DEPENDENT:
                problem = f"the gate of adapter {name!r} depends on the input, so it cannot be merged into the weights"
                remedy = "keep the adapter active, or train one with car='off', 'paper' or 'proportional'."
                raise ConfigError("car", car, f"{problem}; {remedy}")
            self.routing.pair_of(name)
        if len(here) > 1:
            check_additive([(name, self.blocks(name).layout) for name in here])
        for projection in self.projection_names if here else ():
            layer = self.base_layer.get_submodule(projection)
            if not has_dense_weight(layer):
                raise ArchitectureError(
                    "base_layer",
                    type(layer).__name__,
                    f"the weight of {projection} is quantized, offloaded or split and cannot be written; merge into "
                    "an unquantized base that is loaded whole.",
                )
            if safe_merge:
                for name in here:
                    if not torch.isfinite(self._merged_weight(name, projection)).all():
                        raise ValueError(f"NaNs detected in the merged weights. The adapter {name} seems to be broken")

    @torch.no_grad()
    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        """Write adapters into the base weights, for the pair that routing would choose now.

        Args:
            safe_merge: Check the merged weights for NaN before anything is written.
            adapter_names: Adapters to merge; the active ones by default.

        Raises:
            See `check_mergeable`.
        """
        adapter_names = check_adapters_to_merge(self, adapter_names)
        self.check_mergeable([*self.merged_adapters, *adapter_names], safe_merge)
        for name in adapter_names:
            if name not in self.lander_blocks:
                continue
            for projection in self.projection_names:
                layer = self.base_layer.get_submodule(projection)
                self._unmerged_weights.setdefault(projection, layer.weight.data)  # type: ignore[arg-type]
                layer.weight.data = self._merged_weight(name, projection)
            self.merged_adapters.append(name)

    def _merged_weight(self, adapter_name: str, projection: str) -> torch.Tensor:
        return merged_weight(
            self.base_layer.get_submodule(projection),
            self.blocks(adapter_name),
            projection,
            self.routing.pair_of(adapter_name),
            is_output=projection == self.output_name,
        )

    def unmerge(self) -> None:
        """Put the base weights back, bit for bit."""
        if not self.merged:
            warnings.warn("Already unmerged. Nothing to do.", stacklevel=2)
            return
        for projection, weight in self._unmerged_weights.items():
            layer = self.base_layer.get_submodule(projection)
            layer.weight.data = weight.to(layer.weight.device, layer.weight.dtype)  # type: ignore[arg-type]
        self._unmerged_weights.clear()
        self.merged_adapters.clear()

    def device_and_dtype(self) -> tuple[torch.device, torch.dtype]:
        """Device and type for adapters of this FFN: those of its output projection."""
        return device_and_dtype(self.base_layer.get_submodule(self.output_name))

    def _move_adapter_to_device_of_base_layer(self, adapter_name: str, device: torch.device | None = None) -> None:
        """Move an adapter to the device of the FFN; what was loaded keeps its type and so its precision."""
        if adapter_name not in self.lander_blocks:
            return
        blocks = self.blocks(adapter_name)
        if any(tensor.is_meta for tensor in (*blocks.parameters(), *blocks.buffers())):
            return
        blocks.to(device or self.device_and_dtype()[0])

    def _load_from_state_dict(self, state_dict: Mapping[str, Any], prefix: str, *args: Any) -> None:
        # without the FFN's own weights it is not a whole model that is loaded, but one adapter
        whole = any(key.startswith(f"{prefix}base_layer.") for key in state_dict)
        for name in self.lander_blocks:
            self.blocks(name).may_be_absent = not whole
        super()._load_from_state_dict(state_dict, prefix, *args)

    def __getattr__(self, name: str) -> Any:
        """Forward attributes that this module lacks to the base FFN, which some models read from outside."""
        try:
            return super().__getattr__(name)
        except AttributeError:
            if name == "base_layer":
                raise
            return getattr(super().__getattr__("base_layer"), name)

    def __repr__(self) -> str:
        return "lander." + super().__repr__()
