"""Ways to get further pairs, as plain data: what `growth.py` compares."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

LANDER = {
    "attention_modules": ["v", "o"],
    "attention_layers": "all",
    "attention_rank": 16,
    "projections": "output",
    "general_rank": 16,
    "specific_rank": 4,
}
EVERYWHERE = {
    "attention_modules": ["q", "k", "v", "o"],
    "attention_layers": "all",
    "attention_rank": 6,
    "projections": "all",
    "general_rank": 6,
    "specific_rank": 2,
}
"""Forms of the adapter that grows."""


@dataclass(frozen=True)
class Arm:
    """A way to get further pairs.

    Attributes:
        way: `grow`, `train on`, `anew` (one adapter a phase, each from the base), `stack` (one for every phase, active
            together with the first, which is frozen), `copy` (one for every phase, which begins as a copy of the
            first), `joint` (one on the rows of all phases) or `base`.
        first_rate: Learning rate of the first phase, and of adapters that start from the base.
        rates: Of later phases; each is a run of its own.
        options: Of `add_language_pairs`, or of the LoRA of a later phase; how many `components` of a copy are trained.
        replay: Share of the rows of earlier phases that a later one sees again.
        copied: What a phase adds begins as a copy of what the one before added, and learns at this share of the rate;
            None: it begins anew. The first addition has none before it.
        first: Options of the first phase's adapter.
    """

    way: str
    first_rate: float = 5e-4
    rates: tuple[float, ...] = (5e-4,)
    options: dict[str, Any] = field(default_factory=dict)
    replay: float = 0.0
    copied: float | None = None
    first: dict[str, Any] = field(default_factory=dict)

    @property
    def method(self) -> str:
        return "lander" if self.way == "grow" else "lora"


ARMS = {
    "grown r=4": Arm("grow", rates=(5e-4, 1e-3), first=LANDER),
    "grown r=4, output projections": Arm("grow", 1e-3, (1e-3, 5e-4), {"projections": "output"}, first=LANDER),
    "grown r=8, v o": Arm(
        "grow",
        rates=(5e-4, 1e-3),
        options={"specific_rank": 8, "attention_rank": 8, "attention_modules": ["v", "o"]},
        first=LANDER,
    ),
    "grown r=4, specific neurons": Arm("grow", options={"tune": "specific"}, first=LANDER),
    "grown r=4, all projections at first": Arm("grow", rates=(5e-4, 1e-3), first={**LANDER, "projections": "all"}),
    "grown r=4, all linear layers at first": Arm("grow", first=EVERYWHERE),
    "grown r=4, all linear layers at first, from the last": Arm("grow", copied=0.4, first=EVERYWHERE),
    "grown r=4, all linear layers at first, from general": Arm(
        "grow", rates=(5e-4, 3e-4), options={"init_from": "general"}, first=EVERYWHERE
    ),
    "grown r=4, all linear layers at first, from general, then from the last": Arm(
        "grow", options={"init_from": "general"}, copied=0.4, first=EVERYWHERE
    ),
    "LoRA, trained on": Arm("train on", rates=(5e-4, 1e-4)),
    "LoRA, trained on, 5% replay": Arm("train on", rates=(5e-4, 1e-4), replay=0.05),
    "LoRA, one a phase": Arm("anew"),
    "LoRA, stacked r=16": Arm("stack", rates=(5e-4, 1e-3)),
    "LoRA, stacked r=4": Arm("stack", rates=(5e-4, 1e-3), options={"r": 4}),
    "LoRA, stacked r=4, from the last": Arm("stack", options={"r": 4}, copied=0.4),
    "LoRA, copied, 4 of 16 components": Arm("copy", rates=(3e-4,), options={"components": 4}),
    "LoRA, joint": Arm("joint"),
    "base": Arm("base"),
}
