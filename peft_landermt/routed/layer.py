"""What PEFT asks of a tuner layer, for layers whose adapters are blocks on one or more linear layers."""

from __future__ import annotations

import warnings
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from accelerate.hooks import AlignDevicesHook
from peft.tuners.tuners_utils import BaseTunerLayer, check_adapters_to_merge, onload_layer
from torch import nn

from ..errors import ArchitectureError, ConfigError
from ..linear import has_dense_weight, weight_rows
from .call import Call, Team, current_call
from .projection import RoutedLinear, Share, weight_of
from .routing import Routing


class Blocks(nn.Module):
    """What one adapter holds at one layer.

    Attributes:
        projections: Names of the linear layers that they are on, from the layer's base.
        pairs: Language pairs for which the layer is adapted; empty for all.
    """

    projections: Collection[str]
    pairs: Collection[str]

    @property
    def not_additive(self) -> str | None:
        """Why deltas of other adapters cannot be added to these; None where they can."""
        return None

    def concerns(self, pair: str | None) -> bool:
        """Tell whether the layer is adapted for a pair."""
        return not self.pairs or pair is None or pair in self.pairs

    def check_mergeable(self, adapter_name: str) -> None:
        """Raise ConfigError where the adapter depends on the input; by default it does not."""

    def check_values(self, prefix: str, state: Mapping[str, torch.Tensor]) -> None:
        """Raise AdapterError where loaded tensors of the right shapes hold what cannot be; by default they do not."""

    def _load_from_state_dict(self, state_dict: Mapping[str, Any], prefix: str, *rest: Any) -> None:
        if state_dict:  # else another adapter is loaded; a whole model without this one is told by the layer
            super()._load_from_state_dict(state_dict, prefix, *rest)


class RoutedLayer(nn.Module, BaseTunerLayer):
    """A module of the base, stored as `base_layer`, whose linear layers adapters have blocks on.

    A subclass names the `nn.ModuleDict` that holds each adapter's [`Blocks`] in `adapter_layer_names`, and gives its
    projections.

    Args:
        base_layer: The module.
        routing: Routing of the model.
    """

    other_param_names = ()

    def __init__(self, base_layer: nn.Module, routing: Routing) -> None:
        super().__init__()
        self.base_layer = base_layer
        self.routing = routing
        self._disable_adapters = False
        self._active_adapter: str | list[str] = []
        self.merged_adapters: list[str] = []
        self._unmerged_weights: dict[str, torch.Tensor] = {}
        self.training = base_layer.training

    projections: Mapping[str, RoutedLinear]
    """The linear layers that blocks of this layer are on, by name."""

    def share(self, projection: str, team: Team, states: torch.Tensor | None) -> Share:
        """Tell what a team's adapter makes of a linear layer.

        Args:
            projection: Name of the linear layer.
            team: The samples that an adapter serves, and their pairs.
            states: The linear layer's input (samples, tokens, in); None to merge.
        """
        raise NotImplementedError

    def restore(self) -> nn.Module:
        """Put the base's own modules back in place, and return the base layer."""
        raise NotImplementedError

    def device_and_dtype(self) -> tuple[torch.device, torch.dtype]:
        """Tell on which device and in which type adapters of this layer are made."""
        raise NotImplementedError

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

    def _merged_weight(self, adapter_name: str, projection: RoutedLinear) -> torch.Tensor:
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
        if any(f"{prefix}base_layer.{name}.base_layer.weight" in state_dict for name in self.projections):
            for adapter, blocks in self.adapters.items():
                own = [f"{prefix}{self.adapter_layer_names[0]}.{adapter}.{key}" for key in blocks.state_dict()]
                missing.extend(own if not any(key in state_dict for key in own) else ())

    def __getattr__(self, name: str) -> Any:
        """Forward attributes that this module lacks to the base layer, which some models read from outside."""
        try:
            return super().__getattr__(name)
        except AttributeError:
            if name == "base_layer":
                raise
            return getattr(super().__getattr__("base_layer"), name)


@contextmanager
def _written(projection: RoutedLinear) -> Iterator[None]:
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
