"""Exchanges between processes, beside gradients; free with one process."""

from __future__ import annotations

import itertools
import math
import os
import platform
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from datetime import timedelta
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, NamedTuple, TypeVar

import torch.distributed as dist
from torch import Tensor
from torch.distributed.rendezvous import register_rendezvous_handler, rendezvous

from unlabeled.errors import Interrupted, Stopped, UserError
from unlabeled.files import claim, claimant
from unlabeled.signals import stop

if TYPE_CHECKING:
    from accelerate import Accelerator

T = TypeVar("T")
LIMITS = Path("/sys/fs/cgroup")  # of a container
LAUNCHED = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE")  # by which processes know of each other
SEEN_WITHIN = 10.0  # seconds that a network file system may take to show a file
LOOKS = 1.0  # seconds between looks whether another process is done, at most
_long = itertools.count()  # the same on all processes: work that takes long is named by its number


WAY = "unlabeled"  # how processes find each other, in torch's words


def find_each_other(url: str, **how: Any) -> Iterator[tuple[dist.Store, int, int]]:
    """Find each other as by torch's `env://`, under keys of this start of the processes alone: store, rank, world.

    torchrun's store lives on when it starts processes again. Under the same keys they would read where those were that
    are gone, and wait for them.
    """
    start = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    store, rank, world = next(iter(rendezvous(url.replace(WAY, "env", 1), **how)))
    yield dist.PrefixStore(f"start {start} of {world}", store), rank, world


if dist.is_available():
    register_rendezvous_handler(WAY, find_each_other)


class Group(NamedTuple):
    """This process among those that a launcher started, for work without an accelerator; named as in Accelerate."""

    process_index: int = 0
    num_processes: int = 1

    @property
    def is_main_process(self) -> bool:
        return self.process_index == 0


ALONE = Group()


@contextmanager
def joined(timeout: float) -> Iterator[Group]:
    """Join the processes of a launcher (RANK, WORLD_SIZE, MASTER_ADDR, MASTER_PORT) by gloo, on CPUs; a process
    without a launcher is alone, and so is each of them afterwards, for libraries too. A process waits for another at
    most `timeout` seconds."""
    if not dist.is_available() or int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield ALONE
        return
    dist.init_process_group("gloo", init_method=f"{WAY}://", timeout=timedelta(seconds=timeout))
    try:
        yield Group(*placed())
    finally:
        dist.destroy_process_group()
        for name in LAUNCHED:
            os.environ.pop(name, None)
        stop.several = False


def everywhere(group: Group | Accelerator, find: Callable[[], T]) -> T:
    """The value that `find` gives on the main process, on all."""
    found: Any = from_main(on_main(group, find, whole=False))
    return found


def share(group: Group | Accelerator, numbers: Sequence[int]) -> list[int]:
    """This process's share of some numbers: every n-th among n processes."""
    return list(numbers[group.process_index :: group.num_processes])


def total(accelerator: Accelerator, values: Tensor) -> Tensor:
    """Sum a small tensor over all processes."""
    return accelerator.reduce(values, "sum") if accelerator.num_processes > 1 else values


def gather_objects(value: Any, group: Any = None) -> list[Any]:
    """Gather the values of all processes, in order of rank; over torch's process group `group`, None = the usual."""
    if not (dist.is_available() and dist.is_initialized()):
        return [value]
    values: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(values, value, group=group)
    return values


def placed() -> tuple[int, int]:
    """The rank of this process, and the number of processes."""
    return (dist.get_rank(), dist.get_world_size()) if dist.is_available() and dist.is_initialized() else (0, 1)


def from_main(value: T) -> T:
    """The value of the main process, on all."""
    if placed()[1] == 1:
        return value
    values = [value]
    dist.broadcast_object_list(values, src=0)
    return values[0]


def collect(value: Any) -> list[Any]:
    """The values of all processes in order of rank, on the main process; [] on the others."""
    rank, world = placed()
    if world == 1:
        return [value]
    values: list[Any] = [None] * world if rank == 0 else []
    dist.gather_object(value, values or None)
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


def on_main(group: Group | Accelerator, action: Callable[[], T], *, whole: bool = True) -> T | None:
    """Run an action on the main process only; its error is raised on all. Returns None on the others.

    Where it is `whole`, a signal waits until it is done, as when files are written. Where it is not, it may take longer
    than the timeout of exchanges: pictures are looked for, or many are read.
    """
    result: T | None = None
    with together(), nullcontext() if whole else _however_long(group):
        if group.is_main_process:
            with stop.later() if whole else stop.alone():
                result = action()
    return result


@contextmanager
def _however_long(group: Group | Accelerator) -> Iterator[None]:
    """The others leave it after the main process has, without an exchange, which has a timeout: they ask the store by
    which the processes found each other, now and then."""
    if not (dist.is_available() and dist.is_initialized()):
        yield
        return
    store, key, wait = dist.distributed_c10d._get_default_store(), f"unlabeled/{next(_long)}", 0.01
    try:
        yield
    finally:
        if group.is_main_process:
            store.set(key, "done")
        while not store.check([key]):
            time.sleep(wait)
            wait = min(1.5 * wait, LOOKS)


@contextmanager
def together() -> Iterator[None]:
    """Work that every process does alone, with one exchange at its end: an error of one is raised on all."""
    error: BaseException | None = None
    try:
        yield
    except (UserError, OSError, Stopped) as caught:
        error = caught
    raise_together(error)


def claim_together(group: Group | Accelerator, folder: Path, field: str) -> IO[str] | None:
    """Lock the folder that all processes share, see `unlabeled.files.claim`; the lock is the main process's.

    Raises:
        UserError: it cannot be had; or a process on another machine does not see it.
    """
    lock = on_main(group, lambda: claim(folder, field))
    own = f"process {os.getpid()} on {platform.node()}"
    holder, where = gather_objects((own, str(folder.absolute())))[0]
    with together():
        end = time.monotonic() + SEEN_WITHIN
        while not group.is_main_process and not claimant(folder).startswith(f"{holder},"):
            if time.monotonic() > end:
                raise UserError(
                    f"{platform.node()} does not see in {folder.absolute()} what {holder} has written to {where}. All "
                    f"machines must see one folder: set {field} to one on a file system that they share."
                )
            time.sleep(0.2)
    return lock


def cores() -> int:
    """CPU cores that this process may use, by its affinity and by the quota of its container."""
    here = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min([here, *(max(1, math.ceil(quota)) for quota in _quotas())])


def _quotas() -> Iterator[float]:
    """Limits on cores, by cgroups of version 2 and 1: a container sees its own at the top."""
    with suppress(OSError, ValueError):
        most, period = (LIMITS / "cpu.max").read_text(encoding="utf-8").split()
        yield int(most) / int(period)  # `max` is no number: no limit
    with suppress(OSError, ValueError):
        most, period = ((LIMITS / f"cpu/cpu.cfs_{name}_us").read_text(encoding="utf-8") for name in ("quota", "period"))
        if int(most) > 0:
            yield int(most) / int(period)


def cores_each() -> int:
    """CPU cores for each of the processes that a launcher has started on this machine, at least one."""
    return max(1, cores() // int(os.environ.get("LOCAL_WORLD_SIZE", "1")))
