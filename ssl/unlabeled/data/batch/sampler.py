"""Order is arithmetic: which samples make up global batch s follows from (seed, n, batch size, s) alone."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from dataclasses import KW_ONLY, dataclass
from typing import Generic, Literal, NamedTuple, TypeVar

import numpy as np
from torch.utils.data import Sampler

from unlabeled.data.batch.groups import GroupOrder, Groups
from unlabeled.data.order import EpochOrder, Numbers, Rows
from unlabeled.data.orders import shuffle
from unlabeled.errors import UserError
from unlabeled.randomness import Stream, stream


class Position(NamedTuple):
    """A sample in time: the epoch decides its randomness, the index its image."""

    epoch: int  # from 0; where batches hold groups, the number of its group's pass
    # its number in the source
    index: int  # type: ignore[assignment]  # as every data set calls it, though tuples have a method of that name
    step: int = 0  # number of its global batch
    row: int = 0  # its row there
    batch: int = 1  # rows of a global batch
    # how often the sample has come before in this epoch, or the number of its group; each time it is cropped anew
    turn: int = 0


T = TypeVar("T")
SHUFFLE = shuffle.Config()


class Order(NamedTuple):
    """The order of epochs in which samples may come more than once: of rare classes, or all of fewer samples."""

    labels: np.ndarray  # [n] int64 of the samples, -1 where unknown
    # `none` takes every sample once; a class of n_c samples fills a share of the epoch proportional to the root of n_c
    # (`sqrt`), or the same as any other (`balanced`; Kang et al. 2020, section 4.1).
    balance: Literal["none", "sqrt", "balanced"] = "none"
    # epoch from which it is so; before it, every sample comes once (deferred re-balancing, Cao et al. 2019).
    since: float = 0.0
    # how often each sample that is drawn comes in a row: an epoch is as long as before and has so many times fewer
    # samples (repeated augmentation, Hoffer et al. 2020; `samplers.py` of DeiT).
    repeats: int = 1

    def balanced(self, epoch: int) -> bool:
        """Whether classes are drawn more evenly than they occur."""
        return self.balance != "none" and epoch >= self.since

    def again(self, epoch: int) -> bool:
        """Whether samples may come more than once in an epoch."""
        return self.repeats > 1 or self.balanced(epoch)

    def of(self, seed: int, epoch: int, base: EpochOrder = SHUFFLE, shards: Rows | None = None) -> np.ndarray:
        """The n samples of an epoch, from (seed, epoch) alone; `base` is the order of those that come once each."""
        n = len(self.labels)
        shards = np.array([0, n]) if shards is None else shards
        shuffled = base.epoch(shards, seed, epoch)(np.arange(n))
        drawn = self._evenly(shuffled, seed, epoch) if self.balanced(epoch) else shuffled
        return np.repeat(drawn[: math.ceil(n / self.repeats)], self.repeats)[:n]

    def _evenly(self, shuffled: np.ndarray, seed: int, epoch: int) -> np.ndarray:
        classes, counts = np.unique(self.labels, return_counts=True)
        # slots in proportion to the weights: cumulative shares are rounded, so that each is at most one off
        weights = counts ** (0.5 if self.balance == "sqrt" else 0.0)
        ends = np.rint(np.cumsum(weights) / weights.sum() * len(self.labels)).astype(np.int64)
        slots = np.diff(ends, prepend=0)
        # a class goes round its samples until its slots are full
        rows = [np.resize(shuffled[self.labels[shuffled] == c], n) for c, n in zip(classes, slots, strict=True)]
        return stream(seed, Stream.BALANCE, epoch).permutation(np.concatenate(rows))


def turns_of(order: np.ndarray) -> np.ndarray:
    """How often each element of an order [n] has come before: all 0 in a permutation."""
    by_value = np.argsort(order, kind="stable")
    _, first, counts = np.unique(order[by_value], return_index=True, return_counts=True)
    turns = np.empty(len(order), dtype=np.int64)
    turns[by_value] = np.arange(len(order)) - np.repeat(first, counts)
    return turns


class Epoch(NamedTuple):
    """The samples of an epoch by their positions."""

    numbers: Numbers
    turns: np.ndarray | None = None  # [n] of each position; None = every sample comes once

    def at(self, positions: Rows) -> tuple[list[int], list[int]]:
        """Numbers and turns of the samples at positions [m]."""
        turns = [0] * len(positions) if self.turns is None else self.turns[positions].tolist()
        return self.numbers(positions).tolist(), turns


class Ahead(Generic[T]):
    """Makes the next one of a numbered series in a thread while the present one is used.

    Args:
        make: called with a number.
        last: the number that nothing is made after.
    """

    def __init__(self, make: Callable[[int], T], last: int) -> None:
        self.make, self.last = make, last
        self._made: dict[int, Future[T]] = {}

    def __call__(self, number: int) -> T:
        """The one of a number; the next one is begun. Raises what making it raised."""
        made = self._made.pop(number, None)
        value = self.make(number) if made is None else made.result()
        if number < self.last:
            future = self._made[number + 1] = Future()
            # a program that ends does not wait for it
            threading.Thread(target=self._make, args=(number + 1, future), daemon=True).start()
        return value

    def _make(self, number: int, future: Future[T]) -> None:
        try:
            future.set_result(self.make(number))
        except BaseException as error:
            future.set_exception(error)


@dataclass(eq=False)
class EpochSampler(Sampler[list[Position]]):
    """Micro-batches of one rank, from step `start` on, of a run of `total_steps` over n samples.

    Global batch s of epoch e is rows [sB, (s+1)B) of the epoch's order, `base` of the `shards` (None = one), in which
    samples may come more than once (`order`; None = each once); rank r of `world` takes its contiguous slice, in
    `accumulate` micro-batches; the tail of an epoch is dropped. Where batches hold `groups` in a fixed ratio, these go
    through passes of their own instead, and none is cut short. Raises UserError when the batch is larger than the data,
    or does not divide among ranks and micro-batches.
    """

    n: int
    batch_size: int  # over all ranks and micro-batches
    total_steps: int
    _: KW_ONLY
    seed: int = 0
    start: int = 0
    rank: int = 0
    world: int = 1
    accumulate: int = 1
    order: Order | None = None
    base: EpochOrder = SHUFFLE
    shards: Rows | None = None
    groups: Groups | None = None

    def __post_init__(self) -> None:
        self.steps_per_epoch = steps_per_epoch(self.n, self.batch_size)
        self.micro_batch = per_process(self.batch_size, self.world, self.accumulate)
        if self.groups is not None:
            self.groups.check(self.micro_batch)

    def __len__(self) -> int:
        return (self.total_steps - self.start) * self.accumulate

    @property
    def _shards(self) -> Rows:
        return np.array([0, self.n]) if self.shards is None else self.shards

    def _epoch(self, epoch: int) -> Epoch:
        shards = self._shards
        if self.order is None or not self.order.again(epoch):
            return Epoch(self.base.epoch(shards, self.seed, epoch))
        order = self.order.of(self.seed, epoch, self.base, shards)
        turns, batches = turns_of(order), np.arange(len(order)) // self.batch_size
        # within a batch all repeated samples come once, then all of them again: mixup's partners, which are neighbours,
        # are different images
        rows = np.lexsort((turns % self.order.repeats, batches))
        return Epoch(order[rows].__getitem__, turns[rows])

    def __iter__(self) -> Iterator[list[Position]]:
        return self._in_epochs() if self.groups is None else self._in_groups(self.groups)

    def _in_groups(self, groups: Groups) -> Iterator[list[Position]]:
        order = GroupOrder(groups, self.base, self._shards, self.seed)
        for step in range(self.start, self.total_steps):
            for rows in self._micro_rows():
                drawn = (column.tolist() for column in order.at(step * self.batch_size + rows))
                samples = zip(rows.tolist(), *drawn, strict=True)
                yield [Position(number, index, step, row, self.batch_size, g) for row, number, index, g in samples]

    def _micro_rows(self) -> Iterator[Rows]:
        """Rows of the global batch in each micro-batch of this rank."""
        for micro in range(self.accumulate):
            first = (self.rank * self.accumulate + micro) * self.micro_batch
            yield np.arange(first, first + self.micro_batch)

    def _in_epochs(self) -> Iterator[list[Position]]:
        epochs = Ahead(self._epoch, (self.total_steps - 1) // self.steps_per_epoch)
        order_of, order = -1, Epoch(np.copy)
        for step in range(self.start, self.total_steps):
            epoch, batch = divmod(step, self.steps_per_epoch)
            if epoch != order_of:
                order_of, order = epoch, epochs(epoch)
            for rows in self._micro_rows():
                samples = zip(rows.tolist(), *order.at(batch * self.batch_size + rows), strict=True)
                yield [Position(epoch, index, step, row, self.batch_size, turn) for row, index, turn in samples]


def steps_per_epoch(n: int, batch_size: int) -> int:
    """Whole batches in n samples. Raises UserError when there is none."""
    if n < batch_size:
        raise UserError(
            f"a batch of {batch_size} is larger than the data: found {n} pictures. "
            f"Set train.batch_size to at most {n}, or add pictures."
        )
    return n // batch_size


def per_process(batch_size: int, world: int, accumulate: int) -> int:
    """Samples in a micro-batch of one process. Raises UserError when the batch does not divide."""
    parts = world * accumulate
    if batch_size % parts:
        fewer = next((n for n in range(world, 0, -1) if batch_size % (n * accumulate) == 0), None)
        ways = [
            f"a multiple of {parts}, such as {max(1, round(batch_size / parts)) * parts}",
            *([f"{fewer} process{'' if fewer == 1 else 'es'}"] if fewer else []),
            *(["run.accumulate=auto"] if batch_size % world == 0 else []),
        ]
        raise UserError(
            f"train.batch_size {batch_size} does not divide among {world} processes x {accumulate} accumulation steps. "
            f"Use {', or '.join(ways)}."
        )
    return batch_size // parts


def total_steps(epochs: float, per_epoch: int) -> int:
    """Optimizer steps of a run. Raises UserError when rounding leaves none."""
    steps = round(epochs * per_epoch)
    if steps < 1:
        raise UserError(f"train.epochs {epochs:g} of {per_epoch} steps each is less than one step. Raise train.epochs.")
    return steps
