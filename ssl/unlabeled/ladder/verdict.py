"""Which rung pays, and whether pretraining did."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

from unlabeled.ladder.amount import Amount
from unlabeled.ladder.rungs import RungResult
from unlabeled.ladder.ways import UNPRETRAINED


class Lead(NamedTuple):
    """Difference in accuracy, in points, of the best rung with pretraining and the best without."""

    rung: str
    baseline: str
    points: float  # the difference of their means
    error: float  # twice its standard error, from seeds and test images

    @property
    def clear(self) -> bool:
        """Whether it is more than its error."""
        return self.points > self.error


def at(results: Sequence[RungResult], amount: Amount) -> list[RungResult]:
    """The rungs on one amount of labels, the cheapest first as they were climbed."""
    return [result for result in results if result.amount == amount]


def complete(results: Sequence[RungResult], amounts: Sequence[Amount]) -> list[Amount]:
    """The amounts of labels with a result of every rung so far."""
    rungs = {result.rung for result in results}
    return [amount for amount in amounts if len(at(results, amount)) == len(rungs)]


def pretrained(results: Sequence[RungResult]) -> list[RungResult]:
    """The rungs that use the pretrained encoder."""
    return [result for result in results if result.rung not in UNPRETRAINED]


def lead(results: Sequence[RungResult], amount: Amount) -> Lead | None:
    """The gain by pretraining on one amount of labels; None where there is nothing to compare with."""
    found = at(results, amount)
    rivals, ours = [result for result in found if result.rung in UNPRETRAINED], pretrained(found)
    if not rivals or not ours:
        return None
    best, rival = (max(some, key=lambda result: result.mean) for some in (ours, rivals))
    chance = sum(one.mean * (100 - one.mean) / one.pictures for one in (best, rival) if one.pictures)
    error = 2 * math.sqrt(_deviation(best, rival) ** 2 + chance)
    return Lead(best.rung, rival.rung, best.mean - rival.mean, error)


def pays(results: Sequence[RungResult]) -> RungResult:
    """The cheapest pretrained rung on one amount of labels that no other pretrained rung beats by more than twice the
    error of the difference."""
    results = pretrained(results)
    best = max(results, key=lambda result: result.mean)
    near = [result for result in results if best.mean - result.mean <= 2 * _deviation(best, result)]
    return min(near, key=lambda result: result.seconds)


def _deviation(a: RungResult, b: RungResult) -> float:
    """Standard error of the difference of two means."""
    return math.sqrt(sum(result.std**2 / len(result.accuracies) for result in (a, b)))
