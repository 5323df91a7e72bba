"""Work on numbered shards by one of several engines: the contract of `engines/NAME.py`.

NAME.py has `each(numbers, work, sharing)`, which yields all that `work` yields of all numbers, in any order.
`work(numbers)` does some shards, one after the other, and yields reports on them. What it leaves of a shard is a file
of its own, written whole or not at all, the same whoever writes it, in any order, once or again.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple, TypeVar

from unlabeled.processes import ALONE, Group, collect, share, together
from unlabeled.signals import stop

if TYPE_CHECKING:
    from accelerate import Accelerator

PACKAGE = "unlabeled.sharing.engines"

T = TypeVar("T")
Work = Callable[[Sequence[int]], Iterable[T]]


class Sharing(NamedTuple):
    """How shards are shared: among the processes of a launcher, and by each of them among the workers of an engine.

    Attributes:
        workers: processes on this machine, where the engine takes them.
        group: the processes of the launcher.
        engine: a file of `engines/`.
        cpus, gpus: cores and GPUs of each worker of a cluster, which has as many workers as there is room for.
    """

    workers: int = 1
    group: Group | Accelerator = ALONE
    engine: str = "processes"
    cpus: int = 1
    gpus: int = 0


HERE = Sharing()  # in this process


def each_shard(numbers: Sequence[int], work: Work[T], sharing: Sharing) -> Iterator[T]:
    """Do the work on this process's share of some shards; yields the reports as they come.

    An error of one process is raised on all, when they are done or at it.

    Raises:
        Interrupted: a worker is lost. What is done stays; the same command goes on.
        Other errors are those of the work.
    """
    each: Callable[[Sequence[int], Work[T], Sharing], Iterator[T]]
    each = importlib.import_module(f"{PACKAGE}.{sharing.engine}").each
    with together(), stop.alone():
        yield from each(share(sharing.group, numbers), work, sharing)


def all_shards(numbers: Sequence[int], work: Work[T], sharing: Sharing) -> list[T]:
    """The reports on all shards, on the main process of the group; [] on the others."""
    return [report for reports in collect(list(each_shard(numbers, work, sharing))) for report in reports]
