"""What PEFT asks of a tuner, for methods whose adapters serve samples by language pair."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from peft.tuners.tuners_utils import BaseTuner, BaseTunerLayer, onload_layer
from torch import nn

from ..errors import AdapterError, ConfigError, LanguagePairError
from ..linear import keep_unpacked
from .blocks import Blocks
from .call import Call, batch_size, current_call
from .config import RoutedConfig
from .hooks import bind_calls_to_checkpoints, drop_language_pairs, remove_hooks
from .layer import RoutedLayer, check_all_mergeable
from .projection import RoutedLinear
from .routing import Routing
from .saved_modules import route_saved_modules
from .state import State, adapter_tensors, as_saved, check_can_be_written, check_state, expected_in_file, keys_in_model
from .targets import check_adapter_name, check_saved_modules
from .training import Trained


class RoutedTuner(BaseTuner, Trained):
    """Base class of the package's tuners.

    A subclass says what an adapter holds at which modules (`_plan`), and puts it there (`_create_and_replace`).
    """

    target_module_mapping: dict[str, list[str]] = {}
    tuner_layer_cls = RoutedLayer

    @property
    def routing(self) -> Routing:
        """What the adapted layers of the model share."""
        if "_routing" not in self.__dict__:
            layers = self._layers()
            self.__dict__["_routing"] = layers[0].routing if layers else Routing()
        return self.__dict__["_routing"]

    def _layers(self) -> list[RoutedLayer]:
        if "_found" not in self.__dict__:
            self.__dict__["_found"] = [module for module in self.model.modules() if isinstance(module, RoutedLayer)]
        return self.__dict__["_found"]

    # Adapters

    def _plan(self, peft_config: RoutedConfig, model: nn.Module) -> dict[str, Blocks]:
        """Check that an adapter fits a model, and tell what it will hold: blocks without values, by module name."""
        raise NotImplementedError

    def _prepare_model(self, peft_config: RoutedConfig, model: nn.Module) -> None:
        """Check everything that injection and loading rely on, before the first module is touched."""
        name = [name for name, config in self.peft_config.items() if config is peft_config][-1]
        check_adapter_name(name, self.peft_config, model)
        plan = self._plan(peft_config, model)
        check_saved_modules(peft_config, model, plan)
        if (source := peft_config.source) is not None:
            expected = expected_in_file(peft_config, model, plan, type(self).blocks_name())
            check_state(source.tensors(), *expected, others_loaded=len(self.peft_config) > 1)
            source.check_digest()
            source.is_awaited = True
        keep_unpacked(model)

    def _check_tied_modules(self, model: nn.Module, peft_config: RoutedConfig) -> None:
        # PEFT asks whether embeddings are targets, which FFNs are not, by matching patterns without a time limit
        plain = copy.copy(peft_config)
        plain.target_modules = None
        super()._check_tied_modules(model, plain)

    @classmethod
    def blocks_name(cls) -> str:
        """Return the name of the attribute that holds an adapter's blocks in a layer."""
        return f"{cls.prefix}blocks"

    def inject_adapter(self, model: nn.Module, adapter_name: str, *args: Any, **kwargs: Any) -> None:
        """Put an adapter into the model; see PEFT. A refused adapter leaves everything as it was."""
        self.__dict__.pop("_found", None)
        with self.routing.writing("adding an adapter"):
            super().inject_adapter(model, adapter_name, *args, **kwargs)
        self.__dict__.pop("_found", None)
        config = self.peft_config[adapter_name]
        self.routing.pairs[adapter_name] = tuple(config.language_pairs or ())
        self.routing.unlisted[adapter_name] = tuple(config.unlisted_pairs)
        drop_language_pairs(model)

    def _replace_module(self, parent: nn.Module, child_name: str, new_module: nn.Module, child: nn.Module) -> None:
        # The layer makes its adapters on the device of the base, so nothing is left to move.
        setattr(parent, child_name, new_module)

    def _put(self, name: str, layer: RoutedLayer, adapter_name: str) -> None:
        if adapter_name not in self.active_adapters:
            layer.requires_grad_(False)  # an additional adapter is not automatically trainable
        self.model.set_submodule(name, layer)

    def delete_adapter(self, adapter_name: str) -> None:
        """Delete an adapter; see PEFT, which refuses merged ones from 0.21 on.

        Raises:
            AdapterError: It is merged.
        """
        if any(adapter_name in layer.merged_adapters for layer in self._layers()):
            raise AdapterError("adapter_name", adapter_name, "is merged into the base; call unmerge_adapter() first.")
        active = self.active_adapters
        with self.routing.writing("deleting an adapter"):
            super().delete_adapter(adapter_name)
        if adapter_name in active:
            # PEFT asks the first layer what is active now, but adapters need not share a layer
            left = [name for name in active if name != adapter_name] or sorted(self.peft_config)[:1]
            self.set_adapter(left)
        self.routing.pairs.pop(adapter_name, None)
        self.routing.unlisted.pop(adapter_name, None)
        self.routing.chosen.pop(adapter_name, None)

    # Splitting and joining

    @classmethod
    def parts(cls, adapter_name: str, config: RoutedConfig, by: str) -> list[str]:
        """List the parts that an adapter can be split into: its pairs.

        Args:
            adapter_name: Its name, for messages.
            config: Its config.
            by: `"pair"`; some methods know others.

        Raises:
            ConfigError: The method knows no such parts.
            LanguagePairError: The adapter was made without language pairs.
        """
        if by != "pair":
            raise ConfigError("by", by, f"{config.PEFT_TYPE} adapters are split by 'pair'.")
        if not config.language_pairs:
            raise LanguagePairError(
                "language_pairs", None, f"adapter {adapter_name!r} was made without language pairs."
            )
        return config.language_pairs

    @classmethod
    def restrict(cls, config: Any, state: Mapping[str, torch.Tensor], part: str) -> tuple[RoutedConfig, State]:
        """Return config and state of one part of an adapter."""
        raise NotImplementedError

    @classmethod
    def join(cls, parts: Sequence[Any]) -> tuple[RoutedConfig, State]:
        """Return config and state of one adapter of parts (folder, config, state) that belong together.

        Raises:
            AdapterError: They do not.
        """
        raise NotImplementedError

    # Calls

    @property
    def routed_language_pairs(self) -> list[str]:
        """Pairs that calls can name now: those of the one active adapter; none while it is merged."""
        if len(self.active_adapters) != 1 or self._is_merged():
            return []
        return list(self.routing.pairs.get(self.active_adapters[0], ()))

    def routing_arguments(
        self, language_pairs: Sequence[str], adapter_names: Sequence[str] | None = None
    ) -> dict[str, list[str | None]]:
        """Tell what a call is to be given so that every sample takes its pair; check that the model serves the pairs.

        Args:
            language_pairs: One for every sample.
            adapter_names: For every sample the adapter that the call will name; the active ones by default.

        Returns:
            `{"language_pairs": [...]}`, or nothing where samples need not be told apart: adapters are switched off or
            merged, or have no pairs, or serve one pair only.

        Raises:
            LanguagePairError: An adapter that a sample would take does not hold its pair, or was merged for another.
        """
        if self._is_disabled():
            return {}
        merged = dict.fromkeys(name for layer in self._layers() for name in layer.merged_adapters)
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
        if self._is_merged():
            raise LanguagePairError(
                "language_pair", language_pair, "the model is merged; call unmerge_adapter() first."
            )
        for name in self.active_adapters:
            if language_pair is None:
                self.routing.chosen.pop(name, None)
            else:
                self.routing.chosen[name] = language_pair

    @property
    def _main_input(self) -> str:
        return getattr(self.model, "main_input_name", "input_ids")

    def _is_merged(self) -> bool:
        return any([layer.merged_adapters for layer in self._layers()])

    def _is_disabled(self) -> bool:
        return any([layer._disable_adapters for layer in self._layers()])

    def _call_of(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Call:
        """The call that a forward or generate with these arguments is."""
        if self._is_disabled():
            return Call(self.routing)
        pairs, names = kwargs.get("language_pairs"), kwargs.get("adapter_names")
        if pairs is None and names is None:
            return self.routing.call([] if self._is_merged() else self.active_adapters)
        if self._is_merged() and names is not None:  # in PEFT's words
            remedy = "Cannot pass `adapter_names` when there are merged adapters, please call `unmerge_adapter` first."
            raise LanguagePairError("adapter_names", names, remedy)
        if self._is_merged():
            remedy = "the model is merged for one pair; call unmerge_adapter() first."
            raise LanguagePairError("language_pairs", pairs, remedy)
        return self.routing.call_of(self.active_adapters, pairs, names, batch_size(args, kwargs, self._main_input))

    @contextmanager
    def _enable_peft_forward_hooks(self, *args: Any, **kwargs: Any) -> Iterator[None]:
        """Make the call; PEFT enters this around `forward` and `generate`, with their arguments."""
        call = self._call_of(args, kwargs)
        if kwargs.get("adapter_names") is not None:
            route_saved_modules(self.model, self.routing)
        trains = self.model.training and torch.is_grad_enabled()
        if trains:
            bind_calls_to_checkpoints(self.model, self.routing)
        with self.routing.running(call, trains):
            yield

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Run the base model; the call was made by `_enable_peft_forward_hooks`, for most models by PEFT."""
        call = current_call(self.routing)
        if call is None or (self._is_disabled() and (call.active or call.samples is not None)):
            with self._enable_peft_forward_hooks(*args, **kwargs):  # not entered by PEFT for MPT, nor if disabled
                return self.forward(*args, **{**kwargs, "adapter_names": None})
        return self.model(*args, **self._inputs(call, args, kwargs))

    def _inputs(self, call: Call, args: Sequence[Any], kwargs: Mapping[str, Any]) -> dict[str, Any]:
        """What is left for the base model, checked against the call: PEFT does not always show it before."""
        inputs = {name: value for name, value in kwargs.items() if name not in ("language_pairs", "adapter_names")}
        call.check_batch(batch_size(args, inputs, self._main_input))
        return inputs

    def generate(self, *args: Any, **kwargs: Any) -> Any:
        """Generate with the base model, in the call that was made by `_enable_peft_forward_hooks`.

        What is made of weights, such as sums of weights and deltas, is kept from token to token.
        """
        call = Call(self.routing) if self._is_disabled() else current_call(self.routing) or self._call_of(args, kwargs)
        inputs = self._inputs(call, args, kwargs)
        with self.routing.running(replace(call, keeps=True)):
            return self.model.generate(*args, **inputs)

    # Merging

    def merge_adapter(self, adapter_names: list[str] | None = None, safe_merge: bool = False) -> None:
        """Merge adapters into the base weights; see PEFT."""
        with self.routing.writing("merging"):
            check_all_mergeable(self.model, adapter_names, safe_merge)
            self._check_merge_allowed()
            for module in self._tuner_layers():
                module.merge(adapter_names=adapter_names, safe_merge=safe_merge)

    def unmerge_adapter(self) -> None:
        """Put the base weights back, bit for bit; see PEFT."""
        with self.routing.writing("unmerging"):
            for module in self._tuner_layers():
                module.unmerge()

    def _tuner_layers(self) -> Iterator[BaseTunerLayer]:
        """Adapted layers, those of other methods too; these at hand where they are offloaded, as PEFT has them."""
        for module in list(self.model.modules()):
            if isinstance(module, RoutedLayer):
                yield module
            elif isinstance(module, BaseTunerLayer) and not isinstance(module, RoutedLinear):
                with onload_layer(module):
                    yield module

    def _unload_and_optionally_merge(
        self,
        merge: bool = True,
        progressbar: bool = False,
        safe_merge: bool = False,
        adapter_names: list[str] | None = None,
    ) -> nn.Module:
        with self.routing.writing("unloading"):
            if merge:
                check_all_mergeable(self.model, adapter_names, safe_merge)
            for layer in self._layers():
                if merge:
                    layer.merge(safe_merge=safe_merge, adapter_names=adapter_names)
                elif layer.merged:
                    layer.unmerge()
            named = [(name, layer) for name, layer in self.model.named_modules() if isinstance(layer, RoutedLayer)]
            for name, layer in reversed(named):  # inner ones first
                self.model.set_submodule(name, layer.restore())
            remove_hooks(self.model)
            return super()._unload_and_optionally_merge(merge, progressbar, safe_merge, adapter_names)

    # State

    @classmethod
    def _get_adapter_state_dict(
        cls,
        model: nn.Module,
        config: RoutedConfig,
        adapter_name: str,
        state_dict: dict[str, torch.Tensor],
        unwanted_adapter_names: list[str],
    ) -> dict[str, torch.Tensor]:
        # not by parts of names, as PEFT chooses: another adapter named "1" would take layer 1 with it
        tensors = adapter_tensors(model, adapter_name)
        chosen = {key: state_dict.get(key, tensor.detach()) for key, tensor in tensors}
        return {key: as_saved(key, value, config, model) for key, value in chosen.items()}

    @classmethod
    def _remap_adapter_state_dict_for_load(
        cls, model: nn.Module, config: RoutedConfig, adapter_name: str, state_dict: dict[str, torch.Tensor]
    ) -> dict[str, torch.Tensor]:
        names = keys_in_model(model, adapter_name)
        remapped = {names.get(key, key): tensor for key, tensor in state_dict.items()}
        if len(remapped) < len(state_dict):
            key = next(key for key in state_dict if f".{adapter_name}." in key)
            raise AdapterError("state_dict", key, "is there without the adapter's name too; give one of the two.")
        check_can_be_written(model, config, adapter_name, remapped)
        if config.source is not None and config.source.is_awaited:
            config.source.check_unchanged()  # PEFT has read the weights once more
            config.source.is_awaited = False
        return remapped
