"""What PEFT users do, as for LANDER: the same table of behaviours, with LSLo adapters."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import pytest
from peft import PeftModel
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from peft_landermt import LsloConfig, NeuronMap
from peft_landermt.routed.layer import RoutedLayer

from ..conftest import PAIRS
from ..tuner.behaviours.case import Case
from ..tuner.test_behaviours import BEHAVIOURS
from .helpers import adapt, layers_of, make_config

ADAPTERS: dict[str, tuple[list[str], dict[str, Any]]] = {
    "one pair": (["en-de"], {"index": "source"}),
    "several pairs": (PAIRS, {"rank": {"en": 1, "de": 2, "fr": 3}}),
    "learned index": (PAIRS, {"index": "learned"}),
    "attention": (PAIRS, {"target_modules": r".*(attn|attention)\.\w+"}),
}


class LsloCase(Case):
    prefix: ClassVar[str] = "lslo_"
    changes_fresh_output = False

    @property
    def pairs(self) -> list[str]:
        return ADAPTERS[self.kind][0]

    @property
    def options(self) -> dict[str, Any]:
        return ADAPTERS[self.kind][1]

    def config(self, **options: Any) -> LsloConfig:
        return make_config(self.model, self.pairs, **{**self.options, **options})

    def config_for(self, pairs: list[str]) -> LsloConfig:
        return make_config(self.model, pairs)

    def adapted(self, seed: int | None = 1, base: PreTrainedModel | None = None, **options: Any) -> PeftModel:
        return adapt(base if base is not None else self.base(), self.pairs, seed=seed, **{**self.options, **options})

    def layers(self, model: Any) -> dict[str, RoutedLayer]:
        return {**layers_of(model)}

    @property
    def last_layer(self) -> str:
        return list(layers_of(self.adapted()))[-1]

    def expected_parameters(self) -> int:
        """For every language that is used on its side, its rank times inputs and outputs; two logits of an index."""
        expected = 0
        for layer in layers_of(self.adapted()).values():
            index = self.options.get("index", "target")
            sides = {"source": [0], "target": [1], "learned": [0, 1]}[index]
            languages = {pair.split("-")[side] for pair in self.pairs for side in sides}
            rank = self.options.get("rank", 2)
            ranks = [rank[language] if isinstance(rank, dict) else rank for language in languages]
            expected += sum(ranks) * (layer.in_features + layer.out_features) + 2 * (index == "learned")
        return expected


CASES = [(kind, "llama") for kind in ADAPTERS] + [("several pairs", name) for name in ("gpt2", "opt", "bloom")]
QUICK = [("several pairs", "llama")]


@pytest.fixture(
    params=[case if case in QUICK else pytest.param(case, marks=pytest.mark.slow) for case in CASES],
    ids=[f"{kind}-{architecture}" for kind, architecture in CASES],
)
def case(
    request: pytest.FixtureRequest,
    _bases: Callable[[str], tuple[PreTrainedModel, NeuronMap]],
    tokenizer: PreTrainedTokenizerFast,
    tmp_path: Path,
) -> Case:
    kind, architecture = request.param
    model, neuron_map = _bases(architecture)
    return LsloCase(architecture, kind, model, neuron_map, tokenizer, tmp_path)


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning", "error:.*missing adapter keys")
@pytest.mark.parametrize("behaviour", BEHAVIOURS)
def test_behaviour(behaviour: str, case: Case) -> None:
    BEHAVIOURS[behaviour](case)
