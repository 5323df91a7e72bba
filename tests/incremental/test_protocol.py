"""The order of classes and the sizes of tasks."""

from __future__ import annotations

import pytest

from unlabeled.errors import UserError
from unlabeled.incremental.protocol import class_order, increments, known_before, listed_order, task_of


def test_the_order_is_that_of_the_tables() -> None:
    order = class_order(100, 1993)
    assert order[:7] == [68, 56, 78, 8, 23, 84, 90]
    assert sorted(order) == list(range(100)) and all(type(number) is int for number in order)
    assert class_order(100, 1993) == order != class_order(100, 1)


def test_increments_counted_one_task_after_the_other() -> None:
    for classes in range(1, 14):
        for init in range(1, classes + 1):
            for step in range(1, 7):
                expected, left = [init], classes - init
                while left > 0:
                    expected.append(min(step, left))
                    left -= step
                assert increments(classes, init, step) == expected, (classes, init, step)


def test_a_last_task_of_one_class_is_there() -> None:
    assert increments(11, 5, 5) == [5, 5, 1] and task_of([5, 5, 1])[-1] == 2
    assert known_before([5, 5, 1]) == [0, 5, 10] and known_before([3]) == [0]
    assert task_of([2, 3]) == [0, 0, 1, 1, 1]


@pytest.mark.parametrize(
    ("sizes", "said"),
    [((10, 11, 2), "first task has 11 classes, the data 10"), ((10, 0, 2), "tasks of 0"), ((10, 2, 0), "then 0")],
)
def test_tasks_that_cannot_be_are_refused(sizes: tuple[int, int, int], said: str) -> None:
    with pytest.raises(UserError, match=said):
        increments(*sizes)


@pytest.mark.parametrize("seed", [-1, 1 << 32])
def test_a_seed_that_numpy_does_not_have_is_refused(seed: int) -> None:
    with pytest.raises(UserError, match=f"is {seed}, expected 0"):
        class_order(10, seed)


def test_a_listed_order_has_every_class_once() -> None:
    assert listed_order(3, (2, 0, 1)) == [2, 0, 1]
    with pytest.raises(UserError, match=r"has 3 entries.*Missing: \[1\]; twice or out of range: \[2\]"):
        listed_order(3, [2, 0, 2])
    with pytest.raises(UserError, match=r"Missing: none; twice or out of range: \[3\]"):
        listed_order(3, [2, 0, 1, 3])
