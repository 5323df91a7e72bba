"""The micro-batches of one process, from any step on."""

from __future__ import annotations

import time

import torch

from unlabeled.data.batch.loader import RawBatch, ViewDataset, collate, make_loader
from unlabeled.data.batch.sampler import EpochSampler
from unlabeled.data.batch.workers import Batches
from unlabeled.errors import Stopped
from unlabeled.signals import stop


class Feed:
    """The micro-batches of each step, with the time spent waiting for them.

    Args:
        dataset: makes samples.
        batch_size: samples per optimizer step, over all processes and micro-batches.
        total_steps: steps of the whole run.
        start: the step to begin with.
        rank, world: this process and the number of processes.
        accumulate: micro-batches per step and process.
        workers: processes that make samples.
        timeout: seconds to wait for a batch of a worker.
        device: receives the batches.
    """

    def __init__(
        self,
        dataset: ViewDataset,
        batch_size: int,
        total_steps: int,
        *,
        start: int,
        rank: int,
        world: int,
        accumulate: int,
        workers: int,
        timeout: float,
        device: torch.device,
    ) -> None:
        sampler = EpochSampler(
            len(dataset.source),
            batch_size,
            total_steps,
            seed=dataset.seed,
            start=start,
            rank=rank,
            world=world,
            accumulate=accumulate,
            order=dataset.order,
        )
        self.accumulate, self.left, self.waited = accumulate, total_steps - start, 0.0
        self._batches = make_loader(dataset, sampler, workers=workers, device=device, timeout=timeout, collate=collate)
        self._iterator: Batches | None = None

    def next(self) -> tuple[list[RawBatch], Exception | None]:
        """The next step's micro-batches, none after the last or a signal to stop; or what went wrong, for all processes
        to agree on."""
        if not self.left:
            return [], None
        started = time.perf_counter()
        try:
            if self._iterator is None:
                self._iterator = Batches(self._batches)
            with stop.now(), stop.alone():
                fetched = [next(self._iterator) for _ in range(self.accumulate)]
        except Stopped:
            return [], None  # nobody will ask for more
        except Exception as error:  # workers raise whatever their code raises
            return [], error
        self.left -= 1
        self.waited += time.perf_counter() - started
        return fetched, None

    def close(self) -> None:
        """End the workers now, rather than whenever the interpreter gets to it."""
        if self._iterator is not None:
            self._iterator.close()
