"""What PEFT asks of a tuner, for methods whose adapters serve samples by language pair."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from peft.tuners.tuners_utils import BaseTuner, BaseTunerLayer, onload_layer
from torch import nn

from ..errors import AdapterError, ConfigError, LanguagePairError
from ..linear import keep_unpacked
from .blocks import Blocks
from .called import Called
from .config import RoutedConfig
from .hooks import drop_language_pairs, remove_hooks
from .layer import RoutedLayer, check_all_mergeable
from .projection import RoutedLinear
from .state import State, adapter_tensors, as_saved, check_can_be_written, check_state, expected_in_file, keys_in_model
from .targets import check_adapter_name, check_saved_modules
from .training import Trained


class RoutedTuner(Called, Trained, BaseTuner):
    """Base class of the package's tuners.

    A subclass says what an adapter holds at which modules (`_plan`), and puts it there (`_create_and_replace`).
    """

    target_module_mapping: dict[str, list[str]] = {}
    tuner_layer_cls = RoutedLayer

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
