"""Rows that training can use, and those that it cannot, found before the first step."""

from __future__ import annotations

import itertools
import multiprocessing
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch.utils.data import IterableDataset

from ..errors import CorpusError, LanderError
from .collator import TranslationCollator, check_fields
from .direction import is_header

_SAMPLED = 64
"""Rows of every pair whose languages are looked at."""
_SHOWN = 5


@dataclass
class RowReport:
    """What a look at all rows found.

    Attributes:
        total: Number of rows.
        unusable: By index, why a row cannot be used.
        num_cut: How many usable rows are longer than `max_length`, so that their translation, or source, is cut.
        sample: Some rows of every pair.
    """

    total: int = 0
    unusable: dict[int, str] = field(default_factory=dict)
    num_cut: int = 0
    sample: dict[str, list[Mapping[str, Any]]] = field(default_factory=dict)

    @property
    def reasons(self) -> Counter[str]:
        """Count how many rows cannot be used, by reason."""
        return Counter(self.unusable.values())


def look_at(rows: Iterable[Any], collator: TranslationCollator, pairs: Sequence[str] = ()) -> RowReport:
    """Look at every row.

    Args:
        rows: The rows.
        collator: What makes batches of them.
        pairs: Pairs that the adapter holds; any, if there are none.
    """
    report = RowReport()
    for index, row in enumerate(rows):
        report.total += 1
        problem, cut = judge(row, collator, pairs)
        if problem is not None:
            report.unusable[index] = problem
            continue
        report.num_cut += cut
        seen = report.sample.setdefault(row["language_pair"], [])
        if len(seen) < _SAMPLED:
            seen.append(row)
    return report


def judge(row: Any, collator: TranslationCollator, pairs: Sequence[str] = ()) -> tuple[str | None, bool]:
    """Tell why a row cannot be used, or None; and whether `max_length` cuts it."""
    if not isinstance(row, Mapping):
        return "is no mapping", False
    try:
        check_fields(row)
        if pairs and row["language_pair"] not in pairs:
            return f"language_pair={row['language_pair']!r}: the adapter holds {', '.join(pairs)}", False
        if is_header(row):
            return "is a header line", False
        end = next((end for end in collator.ends if end in row["target"]), None)
        if end is not None:
            return f"its target holds {end!r}, which ends a translation", False
        return None, not collator.is_short(row) and collator.cuts(row)
    except LanderError as error:
        return _reason(error, row), False


def _reason(error: LanderError, row: Mapping[str, Any]) -> str:
    if error.field == "max_length":
        return f"no room for a translation in {error.value} tokens"
    if error.field == "row":
        return error.remedy.partition(";")[0]
    return f"{error.field}={error.value!r}: {error.remedy}"


def check_rows(rows: Any, name: str, collator: TranslationCollator, pairs: Sequence[str] = ()) -> RowReport:
    """Check all rows of a sized data set.

    Args:
        rows: The data set.
        name: Name of the argument that it came from, for errors.
        collator: What makes batches of the rows.
        pairs: Pairs that the adapter holds; any, if there are none.

    Raises:
        CorpusError: There are none, or some cannot be used.
    """
    if not len(rows):
        raise CorpusError(name, rows, "is empty; give at least one row.")
    each = rows if hasattr(rows, "__iter__") else (rows[index] for index in range(len(rows)))
    report = look_at(each, collator, pairs)
    if report.unusable:
        first = "; ".join(f"row {index}: {why}" for index, why in itertools.islice(report.unusable.items(), _SHOWN))
        raise CorpusError(
            name,
            f"{len(report.unusable)} of {report.total} rows",
            f"cannot be used ({first}{'; ...' if len(report.unusable) > _SHOWN else ''}); leave them out, as "
            "usable_rows does.",
        )
    return report


def usable_rows(
    rows: Iterable[Any], collator: TranslationCollator, pairs: Sequence[str] = ()
) -> tuple[list[Mapping[str, Any]], RowReport]:
    """Select the rows that can be used, and what was found in looking for them.

    Args:
        rows: The rows.
        collator: What makes batches of them.
        pairs: Pairs that the adapter holds; any, if there are none.
    """
    everything = list(rows)
    report = look_at(everything, collator, pairs)
    return [row for index, row in enumerate(everything) if index not in report.unusable], report


class UsableRows(IterableDataset):
    """The usable rows of a stream; the others are left out and counted.

    Args:
        rows: The stream.
        collator: What makes batches of its rows.
        pairs: Pairs that the adapter holds; any, if there are none.
    """

    def __init__(self, rows: Any, collator: TranslationCollator, pairs: Sequence[str] = ()) -> None:
        super().__init__()
        self.rows, self.collator, self.pairs = rows, collator, list(pairs)
        # shared with the workers of a data loader, which read the stream
        self._skipped, self._cut = multiprocessing.Value("q", 0), multiprocessing.Value("q", 0)

    @property
    def num_skipped(self) -> int:
        """Count rows that were left out."""
        return int(self._skipped.value)

    @property
    def num_cut(self) -> int:
        """Count rows that were cut."""
        return int(self._cut.value)

    def set_epoch(self, epoch: int) -> None:
        """Tell the stream which epoch begins."""
        if hasattr(self.rows, "set_epoch"):
            self.rows.set_epoch(epoch)

    def __len__(self) -> int:
        return len(self.rows)

    def __iter__(self) -> Iterator[Mapping[str, Any]]:
        for row in self.rows:
            problem, cut = judge(row, self.collator, self.pairs)
            for counter, counts in ((self._skipped, problem is not None), (self._cut, cut)):
                if counts:
                    with counter.get_lock():
                        counter.value += 1
            if problem is None:
                yield row
