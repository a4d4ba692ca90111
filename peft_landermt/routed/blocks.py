"""What one adapter holds at one layer: the part that every method has."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import torch
from torch import nn

READING, WRITING, ROWS, GATES = "factors_a", "factors_b", "rows", "gates"
"""Kinds of parameters: low-rank factors that read a projection's input (LoRA's A) and that write to its output (LoRA's
B), whole rows, and gates."""
READING_VALUES, WRITING_VALUES = "values_a", "values_b"
"""Kinds of the same factors on v and o of attention."""


class Blocks(nn.Module):
    """What one adapter holds at one layer.

    Attributes:
        projections: Names of the linear layers that they are on, from the layer's base.
        pairs: Language pairs for which the layer is adapted; empty for all.
        frozen: Names of parameters that are not trained, whatever PEFT says of the adapter.
    """

    projections: Collection[str]
    pairs: Collection[str]
    frozen: Collection[str] = ()

    @property
    def dtype(self) -> torch.dtype:
        """Type of the parameters; float32 where there are none."""
        return next((parameter.dtype for parameter in self.parameters()), torch.float32)

    @property
    def not_additive(self) -> str | None:
        """Why deltas of other adapters cannot be added to these; None where they can."""
        return None

    def kind(self, parameter: str) -> str:
        """Tell what a parameter is, by its name."""
        return {"_A": READING, "_B": WRITING}.get(parameter[-2:], ROWS)

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
