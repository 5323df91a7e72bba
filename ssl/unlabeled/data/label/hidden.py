"""Images whose labels nothing learns from, whatever their folders say."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from copy import copy

import numpy as np
from torch import Tensor

from unlabeled.data.source import Source


class Hidden(Source):
    """A source without labels: all are -1. What they were, measures alone may ask (`truth`).

    Args:
        source: the images.
        classes: names by which hidden labels are numbered; an image of none of these has none.
    """

    classes = ()

    def __init__(self, source: Source, classes: Sequence[str]) -> None:
        self.source = source
        self.labels = np.broadcast_to(np.int64(-1), (len(source),))
        number = {name: i for i, name in enumerate(classes)}
        self._numbers = [*(number.get(name, -1) for name in source.classes), -1]  # -1 stays the last

    def truth(self, i: int) -> int | None:
        return self._numbers[self.source.label(i)] if max(self._numbers) >= 0 else None

    @property
    def shards(self) -> np.ndarray:
        return self.source.shards

    @property
    def skipped(self) -> Counter[str]:
        return self.source.skipped

    def origin(self, i: int) -> tuple[Source, int]:
        return self.source.origin(i)

    def __len__(self) -> int:
        return len(self.source)

    def ahead(self, numbers: Sequence[int]) -> Source:
        other = copy(self)
        other.source = self.source.ahead(numbers)
        return other

    def image(self, i: int) -> Tensor:
        return self.source.image(i)

    def key(self, i: int) -> str:
        return self.source.key(i)

    def fingerprint(self) -> str:
        return self.source.fingerprint()
