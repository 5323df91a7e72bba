"""Batches that hold fixed parts from several groups of rows: for each labelled image seven unlabelled ones, or for each
new image two from a memory.

Rows of a batch follow a pattern, of shares (1, 2): a b b a b b ... Every micro-batch of every process holds whole
periods of it, and so the exact ratio. Each group goes through permutations of its own, one pass after another, whatever
the length of an epoch: the samples of any step follow from (seed, group, pass) alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import accumulate

import numpy as np
from torch import Tensor

from unlabeled.data.order import EpochOrder, Numbers, Rows
from unlabeled.errors import UserError
from unlabeled.randomness import Stream, stream


@dataclass(frozen=True, eq=False)
class Groups:
    """Groups of a source's images, and how many of each make up a period of the batch.

    Two groups may be the same images: each draws for itself, and crops them anew.

    Attributes:
        rows: of each group the numbers of its images in the source [n] int64, ascending.
        shares: of each group how many rows of a period are its own, at least 1.
        views: of each group how many of a batch's views its images have, the first ones: others are blank. () = all.
    """

    rows: tuple[Rows, ...]
    shares: tuple[int, ...]
    views: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        assert len(self.rows) == len(self.shares) and min(self.shares) > 0, self.shares
        if empty := [str(number) for number, rows in enumerate(self.rows) if not len(rows)]:
            raise UserError(f"group {', '.join(empty)} of the batches has no picture. Expected at least one in each.")

    @property
    def period(self) -> int:
        """Rows after which the pattern repeats."""
        return sum(self.shares)

    def check(self, micro_batch: int) -> None:
        """Raise UserError when a micro-batch would not hold the exact ratio."""
        if micro_batch % self.period:
            ratio, nearest = " : ".join(map(str, self.shares)), max(1, round(micro_batch / self.period)) * self.period
            raise UserError(
                f"batches hold pictures {ratio}, so each process needs a multiple of {self.period} at a time, found "
                f"{micro_batch}. Make train.batch_size a multiple of {self.period} x processes x run.accumulate, such "
                f"as {nearest} for each."
            )


class GroupOrder:
    """The images in the places of a run, which are counted through all its batches.

    Args:
        groups: of a source.
        base: the order of a pass through a group.
        shards: where shards of the source begin, and the number of its images [S + 1].
        seed: of the recipe; group 0 has the passes that the epochs of its images alone would be.
    """

    def __init__(self, groups: Groups, base: EpochOrder, shards: Rows, seed: int) -> None:
        self.groups, self.base = groups, base
        self.shards = [np.unique(np.searchsorted(rows, shards)) for rows in groups.rows]
        self.seeds = [seed, *(_seed(seed, number) for number in range(1, len(groups.rows)))]
        self.sizes = np.array([len(rows) for rows in groups.rows])
        self.shares = np.array(groups.shares)
        self.pattern = np.repeat(np.arange(len(groups.shares)), groups.shares)  # the group of each row of a period
        self.turn = np.concatenate([np.arange(share) for share in groups.shares])  # and its number among the group's
        self._latest: dict[int, tuple[int, Numbers]] = {}  # of each group the newest pass, which is asked for again

    def at(self, places: Rows) -> tuple[Rows, Rows, Rows]:
        """Passes, numbers in the source, and groups of the images at places [m]: each [m]."""
        period, place = np.divmod(places, self.groups.period)
        group = self.pattern[place]
        passes, positions = np.divmod(period * self.shares[group] + self.turn[place], self.sizes[group])
        numbers = np.empty_like(places)
        for one, number in np.unique(np.stack([group, passes], 1), axis=0).tolist():
            here = (group == one) & (passes == number)
            numbers[here] = self.groups.rows[one][self._pass(one, number)(positions[here])]
        return passes, numbers, group

    def _pass(self, group: int, number: int) -> Numbers:
        if self._latest.get(group, (-1, None))[0] != number:
            self._latest[group] = number, self.base.epoch(self.shards[group], self.seeds[group], number)
        return self._latest[group][1]


def _seed(seed: int, group: int) -> int:
    return int(stream(seed, Stream.GROUP, group).integers(2**32))


def parted(x: Tensor, shares: tuple[int, ...]) -> list[Tensor]:
    """The rows of each group in a micro-batch [B, ...]: [B share / period, ...], in their order."""
    periods = x.unflatten(0, (-1, sum(shares)))
    ends = list(accumulate(shares))
    return [periods[:, end - share : end].flatten(0, 1) for end, share in zip(ends, shares, strict=True)]
