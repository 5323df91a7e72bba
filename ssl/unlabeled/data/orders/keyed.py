"""A permutation that is computed where it is asked for, in no memory."""

from __future__ import annotations

from typing import Literal

from unlabeled.data.order import EpochOrder, Numbers, Rows
from unlabeled.data.permutation import Permutation
from unlabeled.randomness import Stream, stream


class Config(EpochOrder, frozen=True, extra="forbid"):
    """A permutation computed number by number from a key: no time at the start of an epoch and no memory, however many
    images there are. It is as random as `shuffle`, and another order."""

    name: Literal["keyed"] = "keyed"

    def epoch(self, shards: Rows, seed: int, epoch: int) -> Numbers:
        return Permutation(int(shards[-1]), stream(seed, Stream.KEYED, epoch))

    def describe(self, shards: Rows) -> str | None:
        return f"keyed: {shards[-1]:,} pictures in an order that takes no memory"
