"""Work on numbered shards by one of several engines: the contract of `engines/NAME.py`.

NAME.py has `SUMMARY`, and `each(numbers, work, resources)`, which yields all that `work` yields of all numbers.
`work(numbers)` does some shards, one after the other, and yields reports on them. Its result for a shard is a file of
its own, written whole or not at all, which is the same whoever writes it, in any order, once or again.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple, TypeVar

PACKAGE = "unlabeled.sharing.engines"
DEFAULT = "processes"

T = TypeVar("T")
Work = Callable[[Sequence[int]], Iterable[T]]


class Resources(NamedTuple):
    """The resources that work takes: `workers` at once on one machine."""

    workers: int = 1


def engine_names() -> list[str]:
    """The names of the files in `engines/`, without importing them."""
    return sorted(module.name for module in pkgutil.iter_modules(importlib.import_module(PACKAGE).__path__))


def each_shard(engine: str, numbers: Sequence[int], work: Work[T], resources: Resources) -> Iterator[T]:
    """Let an engine, by its name, do the work on some shards; yields the reports as they come.

    Raises:
        Interrupted: a worker is lost. What is done stays; the same command goes on.
        Other errors are those of the work.
    """
    each: Callable[[Sequence[int], Work[T], Resources], Iterator[T]]
    each = importlib.import_module(f"{PACKAGE}.{engine}").each
    yield from each(numbers, work, resources)
