"""Processes of this machine, forked from this one; a single worker is this process itself, which does all at once."""

from __future__ import annotations

import multiprocessing
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from typing import Any, TypeVar

import torch

from unlabeled.errors import Interrupted, Stopped
from unlabeled.sharing.shards import Sharing, Work

T = TypeVar("T")


def each(numbers: Sequence[int], work: Work[T], sharing: Sharing) -> Iterator[T]:
    """See `unlabeled.sharing.shards`."""
    if sharing.workers < 2 or len(numbers) < 2:
        yield from work(numbers)
        return
    context = multiprocessing.get_context("fork" if sys.platform == "linux" else None)
    pool = ProcessPoolExecutor(min(sharing.workers, len(numbers)), context, _inherit, (work,))
    try:
        for future in as_completed([pool.submit(_do, number) for number in numbers]):
            yield from future.result()
    except BrokenProcessPool as error:
        advice = "out of memory? Use fewer --workers; the same command goes on"
        raise Interrupted(f"a worker was killed: {advice}") from error
    except Stopped:
        for process in list(pool._processes.values()):
            process.kill()  # a shard may take minutes, and is begun anew
        raise
    finally:
        pool.shutdown(cancel_futures=True)


_inherited: Work[Any]


def _inherit(work: Work[Any]) -> None:
    # handed over once, not with every shard: it may hold the index of all pictures
    global _inherited
    _inherited = work
    torch.set_num_threads(1)


def _do(number: int) -> list[Any]:
    return list(_inherited([number]))
