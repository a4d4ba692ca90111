"""What callers ask of a tuner: which pair a sample takes, and a call that knows it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch

from ..errors import LanguagePairError
from .call import Call, batch_size, current_call
from .hooks import bind_calls_to_checkpoints
from .layer import RoutedLayer
from .routing import Routing
from .saved_modules import route_saved_modules


class Called:
    """The part of [`RoutedTuner`][peft_landermt.routed.tuner.RoutedTuner] that runs the base in calls."""

    model: Any
    active_adapters: list[str]
    training: bool

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
