"""Exchanges between processes, beside gradients; free with one process."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

import torch.distributed as dist
from torch import Tensor

from unlabeled.errors import Interrupted, Stopped, UserError
from unlabeled.signals import stop

if TYPE_CHECKING:
    from accelerate import Accelerator

T = TypeVar("T")


def total(accelerator: Accelerator, values: Tensor) -> Tensor:
    """Sum a small tensor over all processes."""
    return accelerator.reduce(values, "sum") if accelerator.num_processes > 1 else values


def gather_objects(value: Any) -> list[Any]:
    """Gather the values of all processes, in order of rank."""
    if not (dist.is_available() and dist.is_initialized()):
        return [value]
    values: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(values, value)
    return values


def raise_together(error: BaseException | None) -> None:
    """Raise the error of any process on all of them, so that none waits for the others.

    Raises:
        Stopped: a signal asks one of them to end, and the work may be interrupted.
        UserError: the first process's error, by rank; Interrupted where it is one.
    """
    mine = None if error is None else (str(error), isinstance(error, Interrupted))
    found = gather_objects((mine, stop.received if stop.asks else None))
    for received in filter(None, (asked for _, asked in found)):
        raise Stopped(f"stopped by {received}{stop.where}")
    for rank, (caught, _) in enumerate(found):
        if caught is not None:
            if error is not None and caught == mine:
                raise error
            text, interrupted = caught
            raise (Interrupted if interrupted else UserError)(f"process {rank}: {text}")


def on_main(accelerator: Accelerator, action: Callable[[], T], *, whole: bool = True) -> T | None:
    """Run an action on the main process only; its error is raised on all. Returns None on the others.

    Where it is `whole`, a signal waits until it is done, as when files are written.
    """
    result: T | None = None
    error: BaseException | None = None
    if accelerator.is_main_process:
        try:
            with stop.later() if whole else stop.alone():
                result = action()
        except (UserError, OSError, Stopped) as caught:
            error = caught
    raise_together(error)
    return result


def cores() -> int:
    """CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
