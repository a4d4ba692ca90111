"""What a trainer asks of a tuner: learning rates of its parameters, and what has become of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from torch import nn

from .layer import RoutedLayer
from .rates import VALUES, check_rates, parameters_by_kind, ratio_of


class Trained:
    """The part of [`RoutedTuner`][peft_landermt.routed.tuner.RoutedTuner] that trainers use."""

    active_adapters: list[str]
    parameters: Callable[[], Iterator[nn.Parameter]]

    def _layers(self) -> list[RoutedLayer]:
        raise NotImplementedError

    def parameter_groups(self, learning_rate: float, rates: Mapping[str, float] | None = None) -> list[dict[str, Any]]:
        """List all trainable parameters in groups for an optimizer, each with its learning rate.

        [`LanderTrainer`] does the same by itself.

        Args:
            learning_rate: The learning rate that ratios are of.
            rates: Ratios by kind of parameter, in place of those of [`RATES`].

        Raises:
            ConfigError: A kind is unknown, or a ratio is not positive.
        """
        ratios = check_rates(rates)
        kinds = parameters_by_kind(self._layers(), values_apart=ratios[VALUES] != 1)
        grouped = {id(parameter) for parameters in kinds.values() for parameter in parameters}
        kinds["others"] = [each for each in self.parameters() if each.requires_grad and id(each) not in grouped]
        return [
            {"params": parameters, "lr": learning_rate * ratio_of(kind, ratios)}
            for kind, parameters in kinds.items()
            if parameters
        ]

    def parameters_by_kind(self) -> dict[str, list[nn.Parameter]]:
        """List the trainable parameters of adapters by kind; see [`RATES`]."""
        return parameters_by_kind(self._layers())

    def training_metrics(self) -> dict[str, float]:
        """Tell what training has done to the active adapters so far, as scalars for a log.

        Returns:
            `change_{block}`: ‖ΔW‖ / ‖W‖ over the weights that a block moves: a language's, and in a LANDER adapter
            those of the `general` neurons and of the tuned `attention`; there, with a gate, also `gate_general_{pair}`
            and `gate_specific_{pair}`, means over layers and over the tokens trained on since the last call. In an
            LSLo adapter with a learned index `index_target`, the mean weight of the target language. With several
            active adapters, names begin with the adapter's.
        """
        several = len(self.active_adapters) > 1
        return {
            f"{adapter}/{name}" if several else name: value
            for adapter in self.active_adapters
            for name, value in self._metrics(adapter).items()
        }

    def _metrics(self, adapter_name: str) -> dict[str, float]:
        raise NotImplementedError
