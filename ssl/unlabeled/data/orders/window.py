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

    together: int = Field(
        1,
        ge=1,
        description="pictures that lie side by side in a tar and come one after the other, one read for all of them; "
        "for tars that were shuffled when they were made, as pictures of a batch are alike otherwise",
    )

    def epoch(self, shards: Rows, seed: int, epoch: int) -> Numbers:
        return Windows(shards, self.shards, self.together, seed, epoch)

    def describe(self, shards: Rows) -> str | None:
        count = len(shards) - 1
        if count == 1:
            return "window: these pictures are one shard, so all of them are mixed; tars are shards"
        windows = -(-count // self.shards)
        return f"window: {count:,} shards in {windows:,} windows of about {shards[-1] // windows:,} pictures each"


class Windows:
    """The order of an epoch: shards are permuted and cut into windows as long as each other, of at most `most`; the
    images of a window are permuted, so many side by side as one.

    Args:
        shards: where shards begin, and the number of all images [S + 1].
        most: shards of a window.
        together: images that stay side by side.
        seed, epoch: of the keys.
    """

    def __init__(self, shards: Rows, most: int, together: int, seed: int, epoch: int) -> None:
        self.together, self.seed, self.number, counts = together, seed, epoch, np.diff(shards)
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
            places[here] = start + self._inside(int(one), int(end - start), positions[here] - start)
        shard = np.searchsorted(self.places, places, "right") - 1
        return self.starts[shard] + places - self.places[shard]

    def _inside(self, window: int, size: int, positions: Rows) -> Rows:
        """The places in a window of so many images at positions [m] of it."""
        whole = size // self.together
        if not whole:
            return positions
        inside = Permutation(whole, stream(self.seed, Stream.WINDOW, self.number, window))
        group, row = np.divmod(positions, self.together)
        found = inside(np.minimum(group, whole - 1)) * self.together + row
        return np.where(group < whole, found, positions)  # what is left over comes last
