"""What class-incremental learning is judged by, from the accuracy on every task after every task."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np


class Measures(NamedTuple):
    """Measures of T tasks, in the unit of the accuracies.

    Attributes:
        seen: accuracy after each task over all test images of classes seen so far: A_0 .. A_(T-1).
        average: mean of them, the first included: average incremental accuracy.
        last: the last of them.
        forgetting: mean over all tasks but the last of the best accuracy ever minus the last; None of one task.
        backward_transfer: mean over them of the last accuracy minus that when the task was learnt; None of one task.
        newest: accuracy on each task's classes when they come: what is not learnt (intransigence) shows here.
    """

    seen: list[float]
    average: float
    last: float
    forgetting: float | None
    backward_transfer: float | None
    newest: list[float]


def measures(accuracy: np.ndarray, images: Sequence[int]) -> Measures:
    """Measures of accuracies a[t, j] after task t on the classes of task j, j <= t; what lies above counts as 0.

    Args:
        accuracy: [T, T].
        images: test images of each task: tasks differ in size, so that A_t is no mean of a[t, j].
    """
    learnt, weights = np.tril(np.asarray(accuracy, dtype=np.float64)), np.asarray(images, dtype=np.float64)
    seen = (learnt @ weights) / np.cumsum(weights)
    several = len(learnt) > 1
    return Measures(
        seen.tolist(),
        float(seen.mean()),
        float(seen[-1]),
        forgetting(learnt) if several else None,
        backward_transfer(learnt) if several else None,
        np.diagonal(learnt).tolist(),
    )


def forgetting(accuracy: np.ndarray) -> float:
    """Mean over j < T-1 of max_t a[t, j] - a[T-1, j], t from j to the last (Chaudhry et al. 2018, with the last task
    among those that may be best: never negative)."""
    learnt = np.tril(accuracy)
    return float((learnt.max(axis=0) - learnt[-1])[:-1].mean())


def backward_transfer(accuracy: np.ndarray) -> float:
    """Mean over j < T-1 of a[T-1, j] - a[j, j] (Lopez-Paz & Ranzato 2017)."""
    return float((accuracy[-1] - np.diagonal(accuracy))[:-1].mean())


def forward_transfer(accuracy: np.ndarray, untrained: np.ndarray) -> float:
    """Mean over j > 0 of a[j-1, j] minus the accuracy [T] of an untrained network (Lopez-Paz & Ranzato 2017).

    For heads that know all classes from the start, whose accuracies above the diagonal are not 0.
    """
    return float((np.diagonal(accuracy, offset=1) - np.ravel(untrained)[1:]).mean())
