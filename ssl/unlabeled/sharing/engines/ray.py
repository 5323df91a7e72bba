"""A Ray cluster: each of its workers takes one shard after the other, whoever is free the next.

The cluster is the one of RAY_ADDRESS, the one that `ray start` has started here, or this machine alone. The shard of a
worker that is lost (killed, out of memory, its machine gone) goes to another, and the worker is started again.
"""

from __future__ import annotations

import importlib
import os
import signal
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

from unlabeled.errors import Interrupted, UserError, first_line
from unlabeled.sharing.shards import Sharing, Work
from unlabeled.signals import is_main_thread

TRIES = 3  # of a shard whose worker is lost

T = TypeVar("T")


def each(numbers: Sequence[int], work: Work[T], sharing: Sharing) -> Iterator[T]:
    """See `unlabeled.sharing.shards`. Raises UserError where Ray is not installed, or no machine has the resources."""
    try:
        ray = importlib.import_module("ray")
    except ImportError as error:
        raise UserError(
            "--engine ray needs the package ray, which is not installed. Run `pip install ray`, or leave --engine out."
        ) from error
    with _connected(ray):
        packed = ray.put(ray.cloudpickle.dumps(work))
        workers = [_worker(ray, sharing) for _ in range(min(len(numbers), _room(ray, sharing)))]
        try:
            yield from _shared(ray, workers, packed, numbers)
        finally:
            for worker in workers:
                ray.kill(worker)


def _shared(ray: Any, workers: Sequence[Any], packed: Any, numbers: Sequence[int]) -> Iterator[Any]:
    """The reports on all shards; a worker that has not begun yet is given none."""
    lost = Counter[int | None]()
    left, free, done = deque(numbers), list[Any](), 0
    waited: dict[Any, tuple[Any, int | None]] = {worker.ready.remote(): (worker, None) for worker in workers}
    while done < len(numbers):
        while left and free:
            worker, number = free.pop(), left.popleft()
            waited[worker.do.remote(packed, number)] = worker, number
        [answered], _ = ray.wait(list(waited), num_returns=1)
        worker, shard = waited.pop(answered)
        try:
            reports = ray.get(answered)
        except ray.exceptions.RayTaskError as error:
            raise error.cause from error
        except ray.exceptions.RayError as error:
            lost[shard] += 1
            if lost[shard] == TRIES:
                what = "before it began" if shard is None else f"at shard {shard}"
                raise Interrupted(
                    f"a worker of the Ray cluster was lost {TRIES} times {what}: out of memory? The same command goes "
                    "on."
                ) from error
            left.extend([] if shard is None else [shard])
            waited[worker.ready.remote()] = worker, None
            continue
        free.append(worker)
        if shard is None:
            lost[None] = 0
        else:
            done += 1
            yield from reports


def _worker(ray: Any, sharing: Sharing) -> Any:
    """Begin an actor, which opens what it needs once."""

    class Worker:
        work: Work[Any] | None = None

        @ray.method(max_task_retries=-1)  # answered when it is there again
        def ready(self) -> None:
            pass

        def do(self, packed: bytes, number: int) -> list[Any]:
            if self.work is None:
                self.work = ray.cloudpickle.loads(packed)
            return list(self.work([number]))

    return ray.remote(num_cpus=sharing.cpus, num_gpus=sharing.gpus, max_restarts=-1)(Worker).remote()


def _room(ray: Any, sharing: Sharing) -> int:
    """How many workers the machines of the cluster hold."""
    resources = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    wanted = {name: count for name, count in (("CPU", sharing.cpus), ("GPU", sharing.gpus)) if count}
    room = sum(min(int(had.get(name, 0) // count) for name, count in wanted.items()) for had in resources)
    if not room:
        asked = " and ".join(f"{count} {name}" for name, count in wanted.items())
        raise UserError(
            f"none of {len(resources)} machines of the Ray cluster has {asked}, which a worker needs. Ask for fewer "
            "loader workers (--workers, run.workers), or add machines."
        )
    return room


@contextmanager
def _connected(ray: Any) -> Iterator[None]:
    """Connect to the cluster, unless this process is connected already; signals are heard as before."""
    if ray.is_initialized():
        yield
        return
    before = signal.getsignal(signal.SIGTERM)
    try:
        ray.init(include_dashboard=False, logging_level="error", log_to_driver=False)
    except Exception as error:  # of any kind, where an address is wrong or a machine too busy to start it
        where = os.environ.get("RAY_ADDRESS", "this machine")
        raise Interrupted(
            f"Ray cannot be reached or started on {where}: {first_line(error)}. Set or unset RAY_ADDRESS; the same "
            "command goes on."
        ) from error
    if is_main_thread():
        signal.signal(signal.SIGTERM, before)
    try:
        yield
    finally:
        ray.shutdown()
