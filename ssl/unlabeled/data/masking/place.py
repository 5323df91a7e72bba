"""The position of a crop in its global batch, for masks whose shares are spread over the batch."""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import numpy as np

from unlabeled.randomness import Stream, stream


class Place(NamedTuple):
    """A crop in its global batch. It depends on neither workers, processes nor accumulation.

    Attributes:
        seed: of the recipe.
        step: number of the global batch.
        row: of its image in the global batch.
        batch: rows of the global batch.
        crop: its number among the crops of an image that hide patches, over all views.
        crops: how many those are.
    """

    seed: int = 0
    step: int = 0
    row: int = 0
    batch: int = 1
    crop: int = 0
    crops: int = 1

    def after(self, crops: int) -> Place:
        """The place of the same image's crop that many further."""
        return self._replace(crop=self.crop + crops)

    @property
    def slots(self) -> int:
        """Crops of the global batch that hide patches."""
        return self.crops * self.batch

    def slot(self) -> int:
        """Its number among them when they are shuffled: every crop of the batch has another one."""
        return int(_shuffled(self.seed, self.step, self.slots)[self.crop * self.batch + self.row])


ALONE = Place()


@lru_cache(maxsize=8)
def _shuffled(seed: int, step: int, n: int) -> np.ndarray:
    return np.argsort(stream(seed, Stream.SLOT, step).random(n), kind="stable")
