"""What one adapter holds for one linear layer: low-rank factors of each language."""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import lru_cache
from typing import Literal

import torch
from torch import nn

from ..routed.blocks import GATES, Blocks
from ..routed.call import Team
from ..routed.projection import Update
from .index import SIDES

Languages = tuple[tuple[str, ...], ...]
"""For every side that a layer is indexed by, the languages of a call on that side, each once."""


class LanguageFactors(Blocks):
    """Low-rank factors of one adapter at one linear layer.

    For every language the parameters `{language}_A` (r, in) and `{language}_B` (out, r): ΔW = scaling · B A for the
    samples of that language. With `word="learned"` also `index_logits` (2,), and ΔW = scaling (w_s B_s A_s + w_t B_t
    A_t) with w the softmax of the logits, s and t the languages of the sample's pair.

    Args:
        word: Which language of a pair the layer is indexed by: `"source"`, `"target"`, or `"learned"`.
        ranks: Rank of every language that the layer has factors of.
        inside: Number of inputs.
        outside: Number of outputs.
        device: Device of the parameters.
        dtype: Floating-point type of the factors.
        scaling: Factor of B A.
        dropout: Share of the inputs that A does not see in training.
        init_weights: True: A within ±1/√in, B zero; `"paper"`: A within ±1/√r, B zero; False: both random.

    Attributes:
        all_take_part: Whether languages that do not occur get a gradient of zeros in place of none, because processes
            that split the factors add up gradients of all languages.
        masks: For languages whose factors are being pruned, bool (out, r): which entries of B are left. Not saved:
            what is pruned is zero.
    """

    projections = ("",)
    pairs = ()

    def __init__(
        self,
        word: str,
        ranks: Mapping[str, int],
        inside: int,
        outside: int,
        device: torch.device,
        dtype: torch.dtype,
        scaling: float = 1.0,
        dropout: float = 0.0,
        init_weights: bool | Literal["paper"] = True,
    ) -> None:
        super().__init__()
        self.word, self.ranks, self.scaling, self.dropout = word, dict(ranks), scaling, dropout
        self.all_take_part = False
        self.masks: dict[str, torch.Tensor] = {}
        for language, rank in ranks.items():
            factor_a = torch.empty(rank, inside, device=device, dtype=dtype)
            factor_b = torch.zeros(outside, rank, device=device, dtype=dtype)
            bound = 1 / math.sqrt(rank if init_weights == "paper" else inside)
            nn.init.uniform_(factor_a, -bound, bound)
            if not init_weights:
                nn.init.uniform_(factor_b, -bound, bound)
            self.register_parameter(f"{language}_A", nn.Parameter(factor_a))
            self.register_parameter(f"{language}_B", nn.Parameter(factor_b))
        if word == "learned":
            self.index_logits = nn.Parameter(torch.zeros(2, device=device))

    def kind(self, parameter: str) -> str:
        """Tell what a parameter is, by its name."""
        return GATES if parameter == "index_logits" else super().kind(parameter)

    def factors(self, language: str) -> tuple[torch.Tensor, torch.Tensor]:
        """Return A (r, in) and B (out, r) of a language; pruned entries are zero, and get no gradient."""
        factor_a, factor_b = self._parameters[f"{language}_A"], self._parameters[f"{language}_B"]
        assert factor_a is not None and factor_b is not None
        mask = self.masks.get(language)
        return factor_a, factor_b if mask is None else factor_b * mask

    def index_weights(self) -> torch.Tensor:
        """Return the weights (2,) of the source and of the target language; they add up to 1."""
        return self.index_logits.float().softmax(dim=0)

    def update(self, team: Team, dtype: torch.dtype, by_sample: bool = False) -> Update:
        """Make ΔW for a team whose samples may have different languages.

        Args:
            team: Samples and their pairs.
            dtype: Type to multiply in.
            by_sample: Whether each sample gets factors of its own, (n, r, in) and (n, out, r), which are fewer
                products where a sample has many tokens. Otherwise the factors of all languages lie side by side,
                and each sample uses its own.
        """
        sides = SIDES[self.word]
        languages = _languages(team.pairs, sides)
        weights = self.index_weights() if self.word == "learned" else None
        mixed = any(len(of_side) > 1 for of_side in languages)
        downs, ups = [], []
        for index, of_side in enumerate(languages):
            factors = [self._weighted(language, None if weights is None else weights[index]) for language in of_side]
            if mixed and by_sample:
                factors = [_of_samples(team, sides[index], of_side, factors, dtype)]
            downs += [down for down, _ in factors]
            ups += [up for _, up in factors]
        scale = None
        if mixed and not by_sample:
            ranks = tuple(self.ranks[language] for of_side in languages for language in of_side)
            scale = team.weigh(_held(team.pairs, sides, languages), ranks, dtype, downs[0].device)
        down = downs[0] if len(downs) == 1 else torch.cat(downs, dim=-2)
        if self.all_take_part:
            down = down + sum((weight * 0).sum() for weight in self.parameters())
        up = ups[0] if len(ups) == 1 else torch.cat(ups, dim=-1)
        dropout = self.dropout if self.training else 0.0
        return Update.low_rank(down.to(dtype), up.to(dtype), scale=scale, dropout=dropout)

    def _weighted(self, language: str, weight: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor]:
        """A times all that B A is multiplied by, and B."""
        down, up = self.factors(language)
        if weight is not None:
            return down * (weight * self.scaling), up
        return (down if self.scaling == 1 else down * self.scaling), up

    def extra_repr(self) -> str:
        """Tell the index and the ranks."""
        ranks = ", ".join(f"{language}={rank}" for language, rank in self.ranks.items())
        return f"index={self.word}, {ranks}"


@lru_cache(1024)
def _languages(pairs: tuple[str, ...], sides: tuple[int, ...]) -> Languages:
    return tuple(tuple(dict.fromkeys(pair.split("-")[side] for pair in pairs)) for side in sides)


def _of_samples(
    team: Team,
    side: int,
    languages: tuple[str, ...],
    factors: list[tuple[torch.Tensor, torch.Tensor]],
    dtype: torch.dtype,
) -> tuple[torch.Tensor, torch.Tensor]:
    """A (n, r, in) and B (n, out, r) of each sample's language; smaller ranks are filled up with zeros.

    Chosen by a product with ones and zeros, whose gradient, unlike that of an indexing, has one order of summation.
    """
    rank = max(down.shape[0] for down, _ in factors)
    if any(down.shape[0] < rank for down, _ in factors):
        pad, missing = nn.functional.pad, [rank - down.shape[0] for down, _ in factors]
        factors = [
            (pad(down, (0, 0, 0, count)), pad(up, (0, count)))
            for (down, up), count in zip(factors, missing, strict=True)
        ]
    downs, ups = (torch.stack(each).to(dtype) for each in zip(*factors, strict=True))
    ones = (1,) * len(languages)
    chosen = team.weigh(_held(team.pairs, (side,), (languages,)), ones, dtype, downs.device).squeeze(1)
    return tuple((chosen @ each.flatten(1)).view(-1, *each.shape[1:]) for each in (downs, ups))  # type: ignore[return-value]


@lru_cache(1024)
def _held(pairs: tuple[str, ...], sides: tuple[int, ...], languages: Languages) -> tuple[tuple[bool, ...], ...]:
    """For every pair, which languages of each side it has."""
    return tuple(
        tuple(
            language == pair.split("-")[side]
            for side, of_side in zip(sides, languages, strict=True)
            for language in of_side
        )
        for pair in pairs
    )
