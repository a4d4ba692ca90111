"""Options that take one of a few values, and these; a command line needs no more to tell them."""

from __future__ import annotations

from typing import Literal, get_args

CarMode = Literal["off", "paper", "proportional", "token", "learned"]
InactiveNeurons = Literal["keep", "drop"]
Tune = Literal["pair", "general", "specific", "layers"]
Projections = Literal["all", "input", "output"]
AttentionLayers = Literal["relevant", "all"]
CHOICES = {
    "car": get_args(CarMode),
    "inactive_neurons": get_args(InactiveNeurons),
    "tune": get_args(Tune),
    "projections": get_args(Projections),
    "attention_layers": get_args(AttentionLayers),
}
"""Fields of a config that take one of a few values, and these."""

Role = Literal["q", "k", "v", "o"]
ROLES: tuple[str, ...] = get_args(Role)
"""Linear layers of attention, by what they make."""

ActivationStatistic = Literal["mean", "mean_abs"]
"""What of a layer's activations is averaged (eq. 1)."""

LayerStatistic = Literal["activation", "gradient"]
"""What a pair's layers are chosen by."""

Word = Literal["source", "target", "learned"]
WORDS: tuple[str, ...] = get_args(Word)
"""Whose factors a layer of LSLo uses."""
