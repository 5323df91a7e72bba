"""Measures of class-incremental learning, counted one entry at a time."""

from __future__ import annotations

import numpy as np
import pytest

from unlabeled.incremental.measures import forward_transfer, measures


def accuracies(tasks: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).uniform(0, 100, (tasks, tasks))


def test_every_measure_by_hand() -> None:
    a, images = accuracies(5), [50, 10, 10, 30, 7]
    found = measures(a, images)
    seen = [sum(images[j] * a[t, j] for j in range(t + 1)) / sum(images[: t + 1]) for t in range(5)]
    assert found.seen == pytest.approx(seen, rel=1e-12)
    assert found.average == pytest.approx(sum(seen) / 5) and found.last == pytest.approx(seen[4])
    assert found.forgetting == pytest.approx(sum(max(a[t, j] for t in range(j, 5)) - a[4, j] for j in range(4)) / 4)
    assert found.backward_transfer == pytest.approx(sum(a[4, j] - a[j, j] for j in range(4)) / 4)
    assert found.newest == pytest.approx([a[j, j] for j in range(5)])


def test_tasks_of_unequal_size_weigh_by_their_images() -> None:
    found = measures(np.array([[90.0, 0.0], [80.0, 20.0]]), [900, 100])
    assert found.seen == pytest.approx([90, 74]) and found.average == pytest.approx(82)


def test_what_is_above_the_diagonal_does_not_count() -> None:
    a = accuracies(4)
    assert measures(a, [1, 2, 3, 4]) == measures(np.tril(a), [1, 2, 3, 4])


def test_forgetting_is_never_negative_and_backward_transfer_may_be_positive() -> None:
    better = np.array([[50.0, 0.0], [70.0, 60.0]])
    found = measures(better, [1, 1])
    assert found.forgetting == 0 and found.backward_transfer == 20


def test_one_task_forgets_nothing() -> None:
    found = measures(np.array([[80.0]]), [10])
    assert (found.average, found.last, found.forgetting, found.backward_transfer) == (80, 80, None, None)


def test_forward_transfer_looks_at_the_task_that_comes_next() -> None:
    a, untrained = accuracies(4), np.array([1.0, 2.0, 3.0, 4.0])
    assert forward_transfer(a, untrained) == pytest.approx(sum(a[j - 1, j] - untrained[j] for j in (1, 2, 3)) / 3)
