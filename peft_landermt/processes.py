"""Work shared by the processes of torch.distributed."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

import torch.distributed as dist

from .errors import LanderError

Item = TypeVar("Item")
Result = TypeVar("Result")


def check_started(error: type[LanderError]) -> None:
    """Check that there are processes to share with.

    Raises:
        LanderError: torch.distributed is not initialized; of the class `error`.
    """
    if not (dist.is_available() and dist.is_initialized()):
        raise error(
            "distributed",
            True,
            "there are no other processes; start the script with accelerate launch or torchrun, and make a process "
            "group (accelerate.PartialState() or torch.distributed.init_process_group()) first.",
        )


def same_everywhere(value: Any) -> bool:
    """Tell whether all processes have an equal value here."""
    return all(other == value for other in _gathered(value))


def shared(items: Sequence[Item], work: Callable[[Item], Result], distributed: bool) -> Iterator[Result]:
    """Do `work` of every item, in order; with `distributed` each process does its share, and all get all results.

    Every process works equally often, since weights split by FSDP are gathered in step; the last item may therefore
    be done by several. An error in one process is raised in all, so that none waits for it.
    """
    if not distributed:
        yield from map(work, items)
        return
    size, rank = dist.get_world_size(), dist.get_rank()
    for start in range(0, len(items), size):
        try:
            mine: Result | Exception = work(items[min(start + rank, len(items) - 1)])
        except Exception as error:  # not lost: raised below, here and in the other processes
            mine = error
        results = _gathered(mine)
        for result in results:
            if isinstance(result, Exception):
                raise result
        yield from results[: len(items) - start]


def _gathered(value: Any) -> list[Any]:
    """The value of every process, by rank."""
    values: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(values, value)
    return values
