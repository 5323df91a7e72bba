"""The contract of the order of an epoch: which image comes at which position. Kinds are the files of `orders/`.

An order is arithmetic: it follows from the seed, the epoch and the shards alone, whatever the number of processes, and
any position of it can be asked for without those before it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Annotated

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel

from unlabeled.registry import ByFile

Rows = NDArray[np.int64]
Numbers = Callable[[Rows], Rows]  # positions in an epoch [m] to the numbers of the images there [m]
MANY = 10_000_000  # images from which on a permutation in memory takes seconds


class EpochOrder(BaseModel, ABC, frozen=True, extra="forbid"):
    """A permutation of the images for every epoch. Its fields are what recipes set; `name` is the name of its file."""

    name: str

    @abstractmethod
    def epoch(self, shards: Rows, seed: int, epoch: int) -> Numbers:
        """The order of an epoch, every image once.

        Args:
            shards: the numbers at which shards of images begin, and the number of all images [S + 1], ascending.
            seed: of the recipe.
            epoch: from 0.
        """

    @abstractmethod
    def describe(self, shards: Rows) -> str | None:
        """What it costs, for a plan; None = nothing worth a line. Argument as in `epoch`."""


AnyOrder = Annotated[EpochOrder, ByFile("unlabeled.data.orders", EpochOrder)]
