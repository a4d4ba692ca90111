"""Learning rates: every kind of parameter has its own, as a ratio of one learning rate.

A step of Adam with learning rate η moves each number by about η, whatever its gradient. It moves a row by η in every
place, and the product of two factors by much less, so rows want less. LoRA's `lora_alpha` of 2 r is, under Adam, a
rate twice as high for B, and so it is here.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping

from torch import nn

from ..errors import ConfigError
from .blocks import GATES, READING, READING_VALUES, ROWS, WRITING, WRITING_VALUES
from .layer import RoutedLayer

VALUES = "values"
RATES: Mapping[str, float] = {READING: 1.0, WRITING: 2.0, VALUES: 1.0, ROWS: 0.03, GATES: 1.0}
"""Ratios by kind: low-rank factors that read a projection's input (LoRA's A) and that write to its output (LoRA's B),
whole rows beside factors, gates and the logits of a learned index. That of `values` comes on top for the factors of a
LANDER adapter on v and o of attention. Rows without factors in the adapter have the learning rate itself."""
_AMONG_OTHERS = {READING_VALUES: READING, WRITING_VALUES: WRITING}


def check_rates(rates: Mapping[str, float] | None) -> dict[str, float]:
    """Fill up given ratios with those of `RATES`.

    Raises:
        ConfigError: A kind is unknown, or a ratio is not positive.
    """
    for kind, ratio in (rates or {}).items():
        if kind not in RATES:
            raise ConfigError("rates", kind, f"is no kind of parameter; known are {', '.join(RATES)}.")
        if not isinstance(ratio, (int, float)) or not ratio > 0:
            raise ConfigError("rates", {kind: ratio}, "must be positive; 1 is the learning rate itself.")
    return {**RATES, **(rates or {})}


def ratio_of(kind: str, ratios: Mapping[str, float]) -> float:
    """Tell the ratio of a kind of parameter, from those that `check_rates` gave."""
    if kind in _AMONG_OTHERS:
        return ratios[_AMONG_OTHERS[kind]] * ratios[VALUES]
    return ratios.get(kind, 1.0)


def parameters_by_kind(layers: Iterable[RoutedLayer], values_apart: bool = False) -> dict[str, list[nn.Parameter]]:
    """Trainable parameters of all adapters by kind: those of `RATES`, and `rows_alone` in adapters without factors.

    Args:
        layers: All adapted layers of a model.
        values_apart: Whether factors on v and o are kinds of their own, `values_a` and `values_b`. Where they have the
            rates of others they are not, so that optimizers have the groups of earlier versions' checkpoints.
    """
    of_adapter: dict[str, dict[str, list[nn.Parameter]]] = defaultdict(lambda: defaultdict(list))
    for layer in layers:
        for adapter in layer.adapters:
            blocks = layer.blocks(adapter)
            for name, parameter in blocks.named_parameters():
                if parameter.requires_grad:
                    kind = blocks.kind(name)
                    kind = kind if values_apart else _AMONG_OTHERS.get(kind, kind)
                    of_adapter[adapter][kind].append(parameter)
    found: dict[str, list[nn.Parameter]] = defaultdict(list)
    for kinds in of_adapter.values():
        for kind, parameters in kinds.items():
            alone = kind == ROWS and not {READING, READING_VALUES} & kinds.keys()
            found["rows_alone" if alone else kind].extend(parameters)
    return dict(found)
