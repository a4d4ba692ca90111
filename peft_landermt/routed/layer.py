"""What PEFT asks of a tuner layer, for layers whose adapters are blocks on one or more linear layers."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from accelerate.hooks import AlignDevicesHook
from peft.tuners.tuners_utils import check_adapters_to_merge, onload_layer
from torch import nn

from ..errors import ArchitectureError, ConfigError
from ..linear import device_and_dtype, has_dense_weight, weight_rows
from .blocks import Blocks
from .call import Call, Team, current_call, entered
from .projection import Projection, RoutedLinear, Share, Wrapper, weight_of
from .routing import Routing


class RoutedLayer(Wrapper):
    """A module of the base, stored as `base_layer`, whose linear layers adapters have blocks on.

    A subclass names the `nn.ModuleDict` that holds each adapter's [`Blocks`] in `adapter_layer_names`, names its
    linear layers, puts a [`RoutedLinear`] in the place of each, and tells in `share` what adapters make of them.

    Args:
        base_layer: The module.
        routing: Routing of the model.
    """

    other_param_names = ()

    def __init__(self, base_layer: nn.Module, routing: Routing) -> None:
        super().__init__(base_layer)
        self.routing = routing
        self._disable_adapters = False
        self._active_adapter: str | list[str] = []
        self.merged_adapters: list[str] = []
        self._unmerged_weights: dict[str, torch.Tensor] = {}

    @property
    def projection_names(self) -> tuple[str, ...]:
        """Names of the linear layers that blocks of this layer are on."""
        raise NotImplementedError

    @property
    def projections(self) -> Mapping[str, Projection]:
        """The linear layers that blocks of this layer are on, by name."""
        return {name: self.base_layer.get_submodule(name) for name in self.projection_names}  # type: ignore[misc]

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Run the base's module; its projections compute what the call in progress makes of them."""
        if self.merged_adapters:
            if self.disable_adapters:
                self.unmerge()
            return self._run(*args, **kwargs)
        call = self.call()
        teams = call.teams(self, device_of(args, kwargs))
        # PEFT offloads an adapter with the base that it is loaded into
        offloaded = [team for team in teams if "_hf_hook" in team.blocks.__dict__]
        with onload_layer(self.adapters) if offloaded else nullcontext():
            call = self._opened(call, teams, args, kwargs)
            with entered(call) if call is not current_call(self.routing) else nullcontext():
                output = self._run(*args, **kwargs)
        for team in teams:
            if missed := [name for name in team.blocks.projections if name not in team.met]:
                raise ArchitectureError(
                    "model",
                    missed[0],
                    f"{type(self.base_layer).__name__} reads its weight without calling it, so deltas would be lost; "
                    "for BLOOM, load the model with slow_but_exact=False.",
                )
        return output

    def _run(self, *args: Any, **kwargs: Any) -> Any:
        """Run the base's module in the call in progress."""
        base = self._modules["base_layer"]
        assert base is not None
        return base(*args, **kwargs)

    def _opened(self, call: Call, teams: Sequence[Team], args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Call:
        """The call with what gates need that depends on this layer's input; by default it needs nothing."""
        return call

    def share(self, projection: str, team: Team, states: torch.Tensor | None) -> Share:
        """Tell what a team's adapter makes of a linear layer.

        Args:
            projection: Name of the linear layer.
            team: The samples that an adapter serves, and their pairs.
            states: The linear layer's input (samples, tokens, in); None to merge.
        """
        raise NotImplementedError

    def _put_in_place(self) -> None:
        """Wrap the linear layers, where they are; `restore` undoes it."""
        for name in self.projection_names:
            setattr(self.base_layer, name, RoutedLinear(self.base_layer.get_submodule(name), name, self))

    def restore(self) -> nn.Module:
        """Put the base's own modules back in place, and return the base layer."""
        for name, projection in self.projections.items():
            setattr(self.base_layer, name, projection.base_layer)
        return self.base_layer

    @property
    def _base_weights(self) -> list[str]:
        """Keys of the base's weights in this layer's state."""
        return [f"base_layer.{name}.base_layer.weight" for name in self.projection_names]

    def device_and_dtype(self) -> tuple[torch.device, torch.dtype]:
        """Tell device and type for adapters of this layer: those of its last projection."""
        return device_and_dtype(self.projections[self.projection_names[-1]].base_layer)

    # Adapters

    @property
    def adapters(self) -> nn.ModuleDict:
        """Blocks by adapter."""
        return getattr(self, self.adapter_layer_names[0])

    def holds(self, adapter_name: str) -> bool:
        """Tell whether an adapter has blocks here."""
        return adapter_name in self.adapters

    def blocks(self, adapter_name: str) -> Blocks:
        """Return the blocks of an adapter."""
        blocks = self.adapters[adapter_name]
        assert isinstance(blocks, Blocks)
        return blocks

    def set_adapter(self, adapter_names: str | list[str], inference_mode: bool = False) -> None:
        """Set the active adapters; see PEFT. What blocks say is frozen stays so."""
        super().set_adapter(adapter_names, inference_mode=inference_mode)
        self._freeze()

    def set_requires_grad(self, adapter_names: str | Sequence[str], requires_grad: bool = True) -> None:
        """Have adapters trained, or not; see PEFT. What blocks say is frozen stays so."""
        super().set_requires_grad(adapter_names, requires_grad)
        self._freeze()

    def _freeze(self) -> None:
        for blocks in map(self.blocks, self.adapters):
            for name in blocks.frozen:
                blocks.get_parameter(name).requires_grad_(False)

    def call(self) -> Call:
        """Return this thread's call; where nobody made one, make one that sends all samples to the active adapters."""
        call = current_call(self.routing)
        if call is not None:
            return call
        active = [] if self.disable_adapters else [name for name in self.active_adapters if self.holds(name)]
        return self.routing.call(active)

    def teams(self, device: torch.device) -> tuple[Team, ...]:
        """Return the teams that play here in the call in progress; none where the base's weights are right as they
        are."""
        if self.merged_adapters:
            return ()
        return (current_call(self.routing) or self.call()).teams(self, device)

    def check_together(self, adapter_names: Sequence[str]) -> None:
        """Check that adapters may serve the same samples: their deltas must add up.

        Raises:
            ConfigError: One scales or drops what others need.
        """
        for name in adapter_names if len(adapter_names) > 1 else ():
            if (reason := self.blocks(name).not_additive) is not None:
                raise ConfigError(
                    "active_adapters",
                    list(adapter_names),
                    f"adapter {name!r} {reason}, so it cannot be combined with others; activate one adapter at a "
                    "time.",
                )

    # Merging

    def check_mergeable(self, adapter_names: Sequence[str], safe_merge: bool = False) -> None:
        """Raise if one of the adapters cannot be merged here; change nothing.

        Raises:
            ConfigError: What an adapter does depends on the input.
            ArchitectureError: The base's weights cannot be written.
            LanguagePairError: An adapter holds several pairs and none was chosen.
            ValueError: With `safe_merge`, if merged weights would not be finite.
        """
        here = [name for name in adapter_names if self.holds(name)]
        for name in here:
            self.blocks(name).check_mergeable(name)
            self.routing.pair_of(name)
        self.check_together(here)
        for name, projection in self.projections.items() if here else ():
            with _written(projection):
                if not has_dense_weight(projection.base_layer):
                    raise ArchitectureError(
                        "base_layer",
                        type(projection.base_layer).__name__,
                        f"the weight of {name} is quantized, offloaded to disk or split and cannot be written; merge "
                        "into an unquantized base that is loaded whole.",
                    )
                for adapter in here if safe_merge else ():
                    if not torch.isfinite(self._merged_weight(adapter, projection)).all():
                        raise ValueError(
                            f"NaNs detected in the merged weights. The adapter {adapter} seems to be broken"
                        )

    @torch.no_grad()
    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        """Write adapters into the base weights, each for the pair that it serves when a call names none.

        Args:
            safe_merge: Check the merged weights for NaN before anything is written.
            adapter_names: Adapters to merge; the active ones by default.

        Raises:
            See `check_mergeable`.
        """
        adapter_names = check_adapters_to_merge(self, adapter_names)
        self.check_mergeable([*self.merged_adapters, *adapter_names], safe_merge)
        for adapter in adapter_names:
            if self.holds(adapter):
                for name, projection in self.projections.items():
                    with _written(projection):
                        weight: Any = projection.base_layer.weight
                        self._unmerged_weights.setdefault(name, weight.data)
                        weight.data = self._merged_weight(adapter, projection)
                self.merged_adapters.append(adapter)

    def _merged_weight(self, adapter_name: str, projection: Projection) -> torch.Tensor:
        """Weight with an adapter merged into it, in the base layer's layout."""
        base, pair = projection.base_layer, self.routing.pair_of(adapter_name)
        stored: Any = base.weight
        if not self.blocks(adapter_name).concerns(pair):
            return stored.data.clone()
        team = Team(self.routing.call([adapter_name]), self.blocks(adapter_name), (pair,))
        share = self.share(projection.name, team, None)
        weight = weight_of(base, share.updates, share)
        return weight if weight_rows(base) is stored else weight.t().contiguous()

    def unmerge(self) -> None:
        """Put the base weights back, bit for bit."""
        if not self.merged:
            warnings.warn("Already unmerged. Nothing to do.", stacklevel=2)
            return
        for name, kept in self._unmerged_weights.items():
            with _written(self.projections[name]):
                weight: Any = self.projections[name].base_layer.weight
                weight.data = kept.to(weight.device, weight.dtype)
        self._unmerged_weights.clear()
        self.merged_adapters.clear()

    # What PEFT and torch do with modules

    def _move_adapter_to_device_of_base_layer(self, adapter_name: str, device: torch.device | None = None) -> None:
        """Move an adapter to the device of the base; what was loaded keeps its type and so its precision."""
        if not self.holds(adapter_name):
            return
        blocks = self.blocks(adapter_name)
        if not any(tensor.is_meta for tensor in (*blocks.parameters(), *blocks.buffers())):
            blocks.to(device or self.device_and_dtype()[0])

    def _load_from_state_dict(
        self, state_dict: Mapping[str, Any], prefix: str, metadata: Any, strict: bool, missing: list[str], *rest: Any
    ) -> None:
        super()._load_from_state_dict(state_dict, prefix, metadata, strict, missing, *rest)
        # PEFT loads one adapter and tells others' keys by parts of names: they lack only where the base is loaded too
        if any(f"{prefix}{key}" in state_dict for key in self._base_weights):
            for adapter, blocks in self.adapters.items():
                own = [f"{prefix}{self.adapter_layer_names[0]}.{adapter}.{key}" for key in blocks.state_dict()]
                missing.extend(own if not any(key in state_dict for key in own) else ())


def check_all_mergeable(model: nn.Module, adapter_names: Sequence[str] | None, safe_merge: bool) -> None:
    """Check every adapted layer of a model before the first is written; see `RoutedLayer.check_mergeable`.

    Raises:
        ArchitectureError: Another layer of the model uses an adapted weight too.
    """
    uses = Counter(id(weight) for module in model.modules() for weight in module._parameters.values())
    for layer in (module for module in model.modules() if isinstance(module, RoutedLayer)):
        names = adapter_names if adapter_names is not None else layer.active_adapters
        layer.check_mergeable([name for name in names if name not in layer.merged_adapters], safe_merge)
        for name, projection in layer.projections.items() if any(map(layer.holds, names)) else ():
            if uses[id(projection.base_layer._parameters["weight"])] > 1:
                remedy = "another layer uses the same weight and would change with it; give each its own first."
                raise ArchitectureError("base_layer", f"{name} with tied weight", remedy)


def device_of(args: Sequence[Any], kwargs: Mapping[str, Any]) -> torch.device:
    """Device of the first tensor among a layer's arguments."""
    return next(value for value in (*args, *kwargs.values()) if isinstance(value, torch.Tensor)).device


@contextmanager
def _written(projection: Projection) -> Iterator[None]:
    """Have the weight of a base layer that accelerate offloads to the CPU at hand inside, and keep what is written."""
    hook = getattr(projection.base_layer, "_hf_hook", None)
    if isinstance(hook, AlignDevicesHook) and hook.offload and _is_on_cpu(hook):
        with onload_layer(projection):
            yield
    else:
        yield


def _is_on_cpu(hook: AlignDevicesHook) -> bool:
    """Whether a layer's offloaded weight waits in memory, not on disk."""
    weights, key = hook.weights_map, "weight"
    while hasattr(weights, "dataset"):
        weights, key = weights.dataset, f"{weights.prefix}{key}"
    return key in getattr(weights, "state_dict", weights)
