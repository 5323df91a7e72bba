"""Nearest class means by hand, and whatever the split into tasks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from incremental.tiny import after, blobs, coming, kept
from torch import Tensor

from unlabeled.errors import UserError
from unlabeled.incremental.strategies.ncm import Config, covariance
from unlabeled.incremental.strategy import Kept, Seen

SPLITS = ((6,), (3, 3), (1, 4, 1))
COSINE, MAHALANOBIS = Config(), Config(metric="mahalanobis")
CNN = Config(metric="mahalanobis", shrink=(1.0, 1.0), power=0.5)


def walk(strategy: Config, x: Tensor, y: Tensor, sizes: Sequence[int], memory: int = 0) -> Kept:
    """What is kept after all tasks, of images of the task and of `memory` of each old class."""
    state, old = kept(), 0
    for number, new in enumerate(sizes):
        mine = (y >= old) & (y < old + new)
        for label in range(old):
            mine |= (y == label) & ((y == label).cumsum(0) <= memory)
        state = kept(strategy.learnt(after(x[mine], y[mine]), coming(number, old, new), state))
        old += new
    return state


def distances(config: Config, x: Tensor, y: Tensor, test: Tensor) -> Tensor:
    """Squared Mahalanobis distances, one image and one class at a time."""
    power, (a, b) = config.power, config.shrink

    def unit(v: Tensor) -> Tensor:
        return v**power / (v**power).norm()

    found = torch.zeros(len(test), int(y.max()) + 1, dtype=torch.float64)
    for k in range(found.shape[1]):
        mine = torch.stack([unit(v) for v in x[y == k]])
        mean, size = mine.mean(0), x.shape[1]
        s = sum(torch.outer(v - mean, v - mean) for v in mine) / (len(mine) - 1)
        assert isinstance(s, Tensor)
        between = sum(s[i, j] for i in range(size) for j in range(size) if i != j) / (size * (size - 1))
        variance = s.diagonal().mean()
        s = torch.stack(
            [
                torch.stack([s[i, j] + (a * variance if i == j else b * between) for j in range(size)])
                for i in range(size)
            ]
        )
        r = torch.stack([torch.stack([s[i, j] / (s[i, i] * s[j, j]).sqrt() for j in range(size)]) for i in range(size)])
        for i, v in enumerate(test):
            found[i, k] = (unit(v) - mean) @ r.inverse() @ (unit(v) - mean)
    return found


def test_cosines_with_means_of_features_as_they_are() -> None:
    x, y = blobs(6, 9)
    scores = COSINE.scores(Seen(x.float(), x), walk(COSINE, x, y, (6,)))
    for i in (0, 10, 53):
        for k in range(6):
            mean = torch.stack(list(x[y == k])).sum(0) / 9
            torch.testing.assert_close(scores[i, k], x[i] @ mean / x[i].norm() / mean.norm(), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("strategy", [MAHALANOBIS, CNN])
def test_distances_one_image_and_one_class_at_a_time(strategy: Config) -> None:
    x, y = blobs(3, 9)
    x = x.abs()
    scores = strategy.scores(Seen(x, x), walk(strategy, x, y, (2, 1)))
    torch.testing.assert_close(-scores, distances(strategy, x, y, x))


def test_the_covariance_is_of_a_sample() -> None:
    """Which no distance by correlations shows."""
    x, _ = blobs(1, 9)
    torch.testing.assert_close(covariance(x.T @ x, x.sum(0), 9), x.T.cov())


@pytest.mark.parametrize("memory", [0, 2])
@pytest.mark.parametrize("strategy", [COSINE, MAHALANOBIS])
def test_the_split_into_tasks_changes_nothing(strategy: Config, memory: int) -> None:
    x, y = blobs(6, 9)
    one, *others = (walk(strategy, x, y, sizes, memory) for sizes in SPLITS)
    for other in others:
        assert all(tensor.equal(other.tensors[name]) for name, tensor in one.tensors.items())
    assert one.tensors["sums"].dtype == torch.float64 and one.tensors["counts"].tolist() == [9] * 6


def test_the_exported_rows_name_the_same_classes() -> None:
    x, y = blobs(6, 9)
    state = walk(COSINE, x, y, (3, 3))
    rows = COSINE.rows(state)
    assert rows is not None and rows.norm(dim=1).allclose(torch.ones(6, dtype=torch.float64))
    assert (x @ rows.T).argmax(1).equal(COSINE.scores(Seen(x, x), state).argmax(1))
    assert MAHALANOBIS.rows(walk(MAHALANOBIS, x, y, (6,))) is None


def test_roots_of_negative_features_are_refused() -> None:
    x, y = blobs(2, 9)
    with pytest.raises(UserError, match=r"strategy\.power is 0\.5, and features go down to -"):
        walk(CNN, x, y, (2,))


@pytest.mark.parametrize("same", [False, True])
def test_a_class_of_one_image_has_no_covariance(same: bool) -> None:
    x, y = blobs(2, 3)
    x, y = (torch.cat([x[:3], x[3:4], x[3:4]]), y[:5]) if same else (x[:4], y[:4])
    found: Any = "2" if same else "1"
    with pytest.raises(UserError, match=f"class 1, in the order in which they come, has {found} images"):
        walk(MAHALANOBIS, x, y, (2,))
    walk(COSINE, x, y, (2,))


def test_a_covariance_without_an_inverse_is_refused() -> None:
    x, y = blobs(2, 4)
    with pytest.raises(UserError, match=r"strategy\.shrink is \[0\.0, 0\.0\], which leaves the covariance of class 0"):
        walk(Config(metric="mahalanobis", shrink=(0.0, 0.0)), x, y, (2,))
