"""The images of a score that are worth a look: the worst errors, typical confusions of the hardest classes, and some
that are right."""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from unlabeled.report.classification import Outcomes

HARDEST, OF_EACH = 6, 4  # classes with a row of confusions, and images in it


class Judged(NamedTuple):
    """An image by its number in the source, its class, the one it is taken for, and the probability of that one."""

    number: int
    true: int
    predicted: int
    probability: float


class Chosen(NamedTuple):
    """Images that are worth a look.

    Attributes:
        worst: wrong ones, the highest confidence first.
        confused: for the classes of the lowest recall, wrong ones of the class that they are mostly taken for; those of
            `worst` may be among them.
        right: right ones from the most to the least confident, evenly.
    """

    worst: list[Judged]
    confused: list[list[Judged]]
    right: list[Judged]


def wrong(outcomes: Outcomes, numbers: Tensor) -> list[Judged]:
    """All wrong images, the highest confidence first; `numbers` [n] are theirs in their source."""
    order = outcomes.confidence.argsort(descending=True, stable=True)
    return _judged(outcomes, numbers, order[(outcomes.predicted != outcomes.labels)[order]])


def choose(outcomes: Outcomes, numbers: Tensor, worst: int, right: int) -> Chosen:
    """Choose from the outcomes of n images with these numbers [n] in their source; the same for the same outcomes.

    `worst` and `right` are how many there are of these at most.
    """
    missed = outcomes.predicted != outcomes.labels
    order = outcomes.confidence.argsort(descending=True, stable=True)
    judged = partial(_judged, outcomes, numbers)
    rows, correct = order[missed[order]], order[~missed[order]]
    spread = torch.linspace(0, len(correct) - 1, min(right, len(correct))).round().long()
    confused = [judged(_typical(outcomes, rows, true)) for true in _hardest(outcomes.labels, missed)]
    return Chosen(judged(rows[:worst]), confused, judged(correct[spread]))


def _judged(outcomes: Outcomes, numbers: Tensor, rows: Tensor) -> list[Judged]:
    columns = (numbers, outcomes.labels, outcomes.predicted, outcomes.confidence)
    return [Judged(*row) for row in zip(*(column[rows].tolist() for column in columns), strict=True)]


def _hardest(labels: Tensor, wrong: Tensor) -> list[int]:
    """The classes of the lowest recall that have errors, the worst first."""
    found, missed = torch.bincount(labels), torch.bincount(labels[wrong], minlength=int(labels.max()) + 1)
    order = (missed / found.clamp(min=1)).argsort(descending=True, stable=True)
    return order[missed[order] > 0][:HARDEST].tolist()


def _typical(outcomes: Outcomes, rows: Tensor, true: int) -> Tensor:
    """Of wrong images `rows`, those of a class that are taken for its most frequent wrong one: of middling confidence,
    where there are too many."""
    mine = rows[outcomes.labels[rows] == true]
    taken = outcomes.predicted[mine]
    mine = mine[taken == torch.bincount(taken).argmax()]
    first = max(0, len(mine) - OF_EACH) // 2
    return mine[first : first + OF_EACH]
