"""Faults that are set at a place in the code before a run starts there."""

from __future__ import annotations

import functools
import importlib
import os
import signal
from collections.abc import Callable
from typing import Any

import torch


def at(
    place: str, what: Callable[[], None], call: int = 1, *, rank: int | None = None, in_children: bool = False
) -> None:
    """Do something at the start of the n-th call of a function of this process.

    Args:
        place: module:name or module:class.name.
        what: to do.
        call: which call, from 1; 0 = every.
        rank: in which process only; None = in all.
        in_children: of its workers instead, each of which counts for itself.
    """
    if rank is not None and os.environ.get("RANK", "0") != str(rank):
        return
    module, _, path = place.partition(":")
    *owners, name = path.split(".")
    owner: Any = functools.reduce(getattr, owners, importlib.import_module(module))
    original, calls, process = getattr(owner, name), [0], os.getpid()

    @functools.wraps(original)
    def armed(*arguments: Any, **named: Any) -> Any:
        if (os.getpid() != process) == in_children:
            calls[0] += 1
            if call in (0, calls[0]):
                what()
        return original(*arguments, **named)

    setattr(owner, name, armed)


def in_a_worker(what: Callable[[], None], step: int) -> None:
    """Do something in the worker that makes the first sample of a step."""
    from unlabeled.data.batch.loader import ViewDataset

    original = ViewDataset.__getitem__

    def getitem(self: ViewDataset, position: Any) -> Any:
        if torch.utils.data.get_worker_info() is not None and (position.step, position.row) == (step, 0):
            what()
        return original(self, position)

    ViewDataset.__getitem__ = getitem  # type: ignore[method-assign]


def to_the_group(number: int = signal.SIGTERM) -> None:
    """A signal to this process and all its workers, as a scheduler or a terminal sends it."""
    os.killpg(0, number)


def to_this_one(number: int = signal.SIGTERM) -> None:
    """A signal to this process alone."""
    os.kill(os.getpid(), number)


def own_group(*faults: Callable[[], None]) -> None:
    """Make this process the head of a group of its own, and set faults."""
    os.setpgrp()
    for fault in faults:
        fault()
