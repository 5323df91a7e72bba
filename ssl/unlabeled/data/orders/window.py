"""Shards in random order, some of them open at a time: what disks and object stores read well."""

from __future__ import annotations

from typing import Literal

import numpy as np
from pydantic import Field

from unlabeled.data.order import EpochOrder, Numbers, Rows
from unlabeled.data.permutation import Permutation
from unlabeled.randomness import Stream, stream


class Config(EpochOrder, frozen=True, extra="forbid"):
    """Shards in random order, in windows of so many; within a window images come in random order, every image once an
    epoch. Any position is computed without those before it."""

    name: Literal["window"] = "window"
    shards: int = Field(
        64, ge=1, description="tars that are open at a time; few make neighbours alike, many need a large cache"
    )

    def epoch(self, shards: Rows, seed: int, epoch: int) -> Numbers:
        return Windows(shards, self.shards, seed, epoch)

    def describe(self, shards: Rows) -> str | None:
        count = len(shards) - 1
        if count == 1:
            return "window: these pictures are one shard, so all of them are mixed; tars are shards"
        windows = -(-count // self.shards)
        return f"window: {count:,} shards in {windows:,} windows of about {shards[-1] // windows:,} pictures each"


class Windows:
    """The order of an epoch: shards are permuted and cut into windows as long as each other, of at most `most`; the
    images of a window are permuted.

    Args:
        shards: where shards begin, and the number of all images [S + 1].
        most: shards of a window.
        seed, epoch: of the keys.
    """

    def __init__(self, shards: Rows, most: int, seed: int, epoch: int) -> None:
        self.seed, self.number, counts = seed, epoch, np.diff(shards)
        order = Permutation(len(counts), stream(seed, Stream.SHARDS, epoch))(np.arange(len(counts)))
        self.starts = shards[order]  # in their source, in the order of the epoch
        self.places = np.concatenate([[0], np.cumsum(counts[order])])  # in the epoch
        windows = -(-len(counts) // most)
        self.windows: Rows = self.places[np.arange(windows + 1) * len(counts) // windows]

    def __call__(self, positions: Rows) -> Rows:
        """The numbers of the images at positions [m]: [m]."""
        window, places = np.searchsorted(self.windows, positions, "right") - 1, np.empty_like(positions)
        for one in np.unique(window):
            here, (start, end) = window == one, self.windows[one : one + 2]
            inside = Permutation(int(end - start), stream(self.seed, Stream.WINDOW, self.number, int(one)))
            places[here] = start + inside(positions[here] - start)
        shard = np.searchsorted(self.places, places, "right") - 1
        return self.starts[shard] + places - self.places[shard]
