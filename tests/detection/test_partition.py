"""Eq. 5: language-general and language-specific neurons."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from peft_landermt.detection.awareness import normalize
from peft_landermt.detection.partition import check_general_ratio, partition
from peft_landermt.errors import DetectionError
from peft_landermt.neuron_map import GENERAL

# Columns X_i of six neurons over three languages, and their variances:
#   (1, 1, 1): 0         (3, 0, 0): (4 + 1 + 1) / 3 = 2      (0, 3, 0): 2
#   (0, 0, 6): (4 + 4 + 16) / 3 = 8      (2, 2, 5): (1 + 1 + 4) / 3 = 2      (7, 7, 1): (4 + 4 + 16) / 3 = 8
# Ascending, lower index first: 0, 1, 2, 4, 3, 5. The argmax of the last column is a tie of languages 0 and 1.
SIX = torch.tensor([[1.0, 3, 0, 0, 2, 7], [1, 0, 3, 0, 2, 7], [1, 0, 0, 6, 5, 1]])


@pytest.mark.parametrize(
    ("general_ratio", "expected"),
    [
        (1 / 6, [GENERAL, 0, 1, 2, 2, 0]),
        (2 / 6, [GENERAL, GENERAL, 1, 2, 2, 0]),
        (3 / 6, [GENERAL, GENERAL, GENERAL, 2, 2, 0]),
        (4 / 6, [GENERAL, GENERAL, GENERAL, 2, GENERAL, 0]),
        (5 / 6, [GENERAL, GENERAL, GENERAL, GENERAL, GENERAL, 0]),
    ],
)
def test_six_neurons_by_hand(general_ratio: float, expected: list[int]) -> None:
    awareness = SIX.clone()
    owner = partition(awareness, general_ratio)
    assert owner.dtype == torch.int64
    assert owner.tolist() == expected
    assert torch.equal(awareness, SIX)


def test_ties_of_a_whole_layer_go_to_the_lower_neurons() -> None:
    assert partition(torch.tensor([[1.0], [2.0]]).expand(2, 1000), 0.9).tolist() == [GENERAL] * 900 + [1] * 100


def test_variance_decides_not_size() -> None:
    # neuron 0 is large in every language (variance 0), neuron 1 small in every one (variance 1/4)
    assert partition(torch.tensor([[100.0, 0.0], [100.0, 1.0]]), 0.5).tolist() == [GENERAL, 1]


@pytest.mark.parametrize(
    ("neurons", "general_ratio", "expected"),
    # round(epsilon * p), halves to even, as Python rounds
    [(10, 0.9, 9), (7, 0.9, 6), (8, 0.9, 7), (64, 0.7, 45), (5, 0.9, 4), (3, 0.5, 2), (6, 0.01, 0), (6, 0.99, 6)],
)
def test_number_of_general_neurons_is_rounded(neurons: int, general_ratio: float, expected: int) -> None:
    owner = partition(torch.rand(3, neurons, generator=torch.Generator().manual_seed(0)), general_ratio)
    assert int((owner == GENERAL).sum()) == expected


def test_normalisation_changes_ownership() -> None:
    # language 0 has larger gradients throughout: it owns both neurons (10 > 1, 40 > 9) until every row sums to 1:
    # (0.2, 0.8) and (0.1, 0.9), so that neuron 1 goes to language 1
    awareness = torch.tensor([[10.0, 40.0], [1.0, 9.0]])
    assert partition(awareness, 0.1).tolist() == [0, 0]
    torch.testing.assert_close(normalize(awareness), torch.tensor([[0.2, 0.8], [0.1, 0.9]]))
    assert partition(normalize(awareness), 0.1).tolist() == [0, 1]


def test_normalisation_of_a_silent_language() -> None:
    assert normalize(torch.tensor([[0.0, 0.0], [1.0, 3.0]])).tolist() == [[0.0, 0.0], [0.25, 0.75]]


@pytest.mark.parametrize("general_ratio", [0, 1, 0.0, 1.0, -1, 1.5, "a", "0.9", None, True, float("nan"), [0.9]])
def test_general_ratio_out_of_range(general_ratio: Any) -> None:
    with pytest.raises(DetectionError, match=r"general_ratio=.*between 0 and 1") as caught:
        check_general_ratio(general_ratio)
    assert caught.value.field == "general_ratio"
    with pytest.raises(DetectionError):
        partition(SIX, general_ratio)


def _variance(column: tuple[int, ...]) -> int:
    """Variance times the squared number of languages, exactly."""
    return len(column) * sum(x * x for x in column) - sum(column) ** 2


@st.composite
def _columns(draw: st.DrawFn, ties: bool) -> list[tuple[int, ...]]:
    """Whole-numbered X_i of a layer; without ties, all variances differ and no maximum is shared."""
    languages = draw(st.integers(2, 5))
    numbers = st.lists(st.integers(0, 30 if ties else 1000), min_size=languages, max_size=languages, unique=not ties)
    column = numbers.map(tuple)
    return draw(st.lists(column, min_size=1, max_size=12, unique_by=None if ties else _variance))


_ratios = st.floats(0.01, 0.99)


@settings(max_examples=150, deadline=None, derandomize=True)
@given(columns=_columns(ties=True), general_ratio=_ratios)
def test_every_neuron_has_one_group_and_general_ones_vary_least(
    columns: list[tuple[int, ...]], general_ratio: float
) -> None:
    owner = partition(torch.tensor(columns, dtype=torch.float32).T, general_ratio).tolist()
    assert len(owner) == len(columns)
    general = [column for column, group in zip(columns, owner, strict=True) if group == GENERAL]
    specific = [(column, group) for column, group in zip(columns, owner, strict=True) if group != GENERAL]
    assert len(general) == round(general_ratio * len(columns))
    for column, group in specific:
        assert 0 <= group < len(column)
        assert group == column.index(max(column))
        assert all(_variance(other) <= _variance(column) for other in general)


@settings(max_examples=100, deadline=None, derandomize=True)
@given(data=st.data(), columns=_columns(ties=False), general_ratio=_ratios)
def test_renaming_languages_renames_owners(
    data: st.DataObject, columns: list[tuple[int, ...]], general_ratio: float
) -> None:
    order = data.draw(st.permutations(range(len(columns[0]))))
    awareness = torch.tensor(columns, dtype=torch.float32).T
    owner = partition(awareness, general_ratio)
    renamed = partition(awareness[list(order)], general_ratio)
    assert [GENERAL if group == GENERAL else order[group] for group in renamed.tolist()] == owner.tolist()


@settings(max_examples=100, deadline=None, derandomize=True)
@given(data=st.data(), columns=_columns(ties=False), general_ratio=_ratios)
def test_reordering_neurons_reorders_owners(
    data: st.DataObject, columns: list[tuple[int, ...]], general_ratio: float
) -> None:
    order = list(data.draw(st.permutations(range(len(columns)))))
    awareness = torch.tensor(columns, dtype=torch.float32).T
    assert (
        partition(awareness[:, order], general_ratio).tolist() == partition(awareness, general_ratio)[order].tolist()
    )
