"""A sparse confusion matrix."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from unlabeled.report.page import HARDEST

MOST_CELLS = 1000  # classes up to which a result has every cell, and a plot draws it
GROUPS = 500  # groups that more classes are drawn as


class Confusion(NamedTuple):
    """Counts of the pairs of true and predicted class that occur.

    Attributes:
        true, predicted: [m] int64, ascending by the true class, then by the predicted one.
        counts: [m] int64, at least 1.
        classes: C, the number of classes.
    """

    true: Tensor
    predicted: Tensor
    counts: Tensor
    classes: int

    @classmethod
    def of(cls, predicted: Tensor, labels: Tensor, classes: int) -> Confusion:
        """Count predicted and true classes [n] in [0, C)."""
        pairs, counts = torch.unique(labels.long() * classes + predicted.long(), return_counts=True)
        return cls(pairs // classes, pairs % classes, counts, classes)

    def dense(self) -> Tensor:
        """The matrix [C, C] int64: rows the true class, columns the predicted one."""
        matrix = torch.zeros(self.classes, self.classes, dtype=torch.int64)
        matrix[self.true.cpu(), self.predicted.cpu()] = self.counts.cpu()
        return matrix

    def row(self, true: int) -> dict[int, int]:
        """Counts by predicted class, of one true class."""
        here = self.true == true
        return dict(zip(self.predicted[here].tolist(), self.counts[here].tolist(), strict=True))

    def hardest(self) -> list[int]:
        """The true classes of the lowest recall, the worst first."""
        right = self.true == self.predicted
        found = torch.bincount(self.true, self.counts, minlength=self.classes)
        shares = torch.bincount(self.true[right], self.counts[right], minlength=self.classes) / found
        return shares.nan_to_num(2.0).argsort(stable=True)[: min(HARDEST, int((found > 0).sum()))].tolist()

    def drawn(self, classes: Sequence[str]) -> tuple[Tensor, list[str]]:
        """The dense matrix and the names of its classes; many classes are joined into groups of neighbours, each named
        after its first."""
        size = 1 if self.classes <= MOST_CELLS else -(-self.classes // GROUPS)
        if size == 1:
            return self.dense(), list(classes)
        repeats = self.counts.cpu()
        true, predicted = (part.cpu().div(size, rounding_mode="floor") for part in (self.true, self.predicted))
        pairs = true.repeat_interleave(repeats), predicted.repeat_interleave(repeats)
        return Confusion.of(pairs[1], pairs[0], -(-self.classes // size)).dense(), list(classes[::size])
