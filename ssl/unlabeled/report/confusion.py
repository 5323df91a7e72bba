"""Which classes are taken for which, without room for the pairs that never are."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

MOST_CELLS = 1000  # classes up to which every cell is kept in a result and drawn
HARDEST = 20  # classes that a page names
GROUPS = 500  # that more classes are drawn as


class Confusion(NamedTuple):
    """Pairs of classes that occur.

    Attributes:
        true, predicted: [m] int64, ascending by the true class, then by the predicted one.
        counts: [m] int64, at least 1.
        classes: C, how many there are.
    """

    true: Tensor
    predicted: Tensor
    counts: Tensor
    classes: int

    @classmethod
    def of(cls, predicted: Tensor, labels: Tensor, classes: int) -> Confusion:
        """Of predicted and true classes [n] in [0, C)."""
        pairs, counts = torch.unique(labels.long() * classes + predicted.long(), return_counts=True)
        return cls(pairs // classes, pairs % classes, counts, classes)

    def dense(self) -> Tensor:
        """[C, C] int64: rows the true class, columns the predicted one."""
        matrix = torch.zeros(self.classes, self.classes, dtype=torch.int64)
        matrix[self.true.cpu(), self.predicted.cpu()] = self.counts.cpu()
        return matrix

    def row(self, true: int) -> dict[int, int]:
        """What the pictures of a class are taken for: count by predicted class."""
        here = self.true == true
        return dict(zip(self.predicted[here].tolist(), self.counts[here].tolist(), strict=True))

    def hardest(self) -> list[int]:
        """The classes that are recognised least, of those that occur, the worst first."""
        right = self.true == self.predicted
        found = torch.bincount(self.true, self.counts, minlength=self.classes)
        shares = torch.bincount(self.true[right], self.counts[right], minlength=self.classes) / found
        return shares.nan_to_num(2.0).argsort(stable=True)[: min(HARDEST, int((found > 0).sum()))].tolist()

    def drawn(self, classes: Sequence[str]) -> tuple[Tensor, list[str]]:
        """The dense matrix with its names; of many classes that of groups of neighbours, each named by its first."""
        size = 1 if self.classes <= MOST_CELLS else -(-self.classes // GROUPS)
        if size == 1:
            return self.dense(), list(classes)
        repeats = self.counts.cpu()
        true, predicted = (part.cpu().div(size, rounding_mode="floor") for part in (self.true, self.predicted))
        pairs = true.repeat_interleave(repeats), predicted.repeat_interleave(repeats)
        return Confusion.of(pairs[1], pairs[0], -(-self.classes // size)).dense(), list(classes[::size])
