"""The protocol of class-incremental learning: the order in which classes come, and how many come in each task."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate

import numpy as np

from unlabeled.errors import UserError

SEEDS = 1 << 32  # how many numpy's old generator has


def class_order(classes: int, seed: int) -> list[int]:
    """The original number of each new class, as the tables of papers have it (there the seed is 1993).

    numpy's old generator on purpose: the permutation is part of the protocol. Raises UserError for a seed that it does
    not have.
    """
    if not 0 <= seed < SEEDS:
        raise UserError(f"the seed of the class order is {seed}, expected 0 .. {SEEDS - 1}. Papers use 1993.")
    return [int(number) for number in np.random.RandomState(seed).permutation(classes)]


def listed_order(classes: int, order: Sequence[int]) -> list[int]:
    """An order that is given: the original number of each new class. Raises UserError unless each is there once."""
    if sorted(order) != list(range(classes)):
        missing = sorted(set(range(classes)) - set(order))[:5]
        wrong = sorted({number for number in order if not 0 <= number < classes or order.count(number) > 1})[:5]
        raise UserError(
            f"the class order has {len(order)} entries, expected each of 0 .. {classes - 1} once. "
            f"Missing: {missing or 'none'}; twice or out of range: {wrong or 'none'}."
        )
    return list(order)


def increments(classes: int, init: int, step: int) -> list[int]:
    """How many classes come in each task: `init`, then `step` each; the rest, if any, is the last task.

    Raises UserError where the first task asks for more classes than there are, or a task would have none.
    """
    if init < 1 or step < 1:
        raise UserError(f"tasks of {init} and then {step} classes: expected at least 1 in each.")
    if init > classes:
        raise UserError(f"the first task has {init} classes, the data {classes}. Lower it to {classes} or less.")
    full, rest = divmod(classes - init, step)
    return [init, *[step] * full, *([rest] if rest else [])]


def task_of(sizes: Sequence[int]) -> list[int]:
    """The task in which each new class comes, of the number of classes of each task."""
    return [task for task, size in enumerate(sizes) for _ in range(size)]


def known_before(sizes: Sequence[int]) -> list[int]:
    """Classes known before each task."""
    return [0, *accumulate(sizes[:-1])]
