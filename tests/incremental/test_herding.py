"""Herding against the published loops, one image at a time."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from incremental.tiny import blobs
from torch import Tensor

from unlabeled.incremental.herding import herd, mean_of


def by_the_official_loop(features: Tensor, most: int) -> list[int]:
    unit = [x / np.linalg.norm(x) for x in features.numpy()]
    mean = np.mean(unit, axis=0)
    w, order = mean.copy(), list[int]()
    for _ in range(1000):
        if len(order) == min(most, len(unit)):
            break
        best = int(np.argmax([w @ u for u in unit]))
        if best not in order:
            order.append(best)
        w = w + mean - unit[best]
    return order


def nearest_running_mean(features: Tensor, most: int) -> list[int]:
    unit = [x / np.linalg.norm(x) for x in features.numpy()]
    mean, order = np.mean(unit, axis=0), list[int]()
    while len(order) < min(most, len(unit)):
        free = [i for i in range(len(unit)) if i not in order]
        order.append(min(free, key=lambda i: float(np.linalg.norm(mean - np.mean([unit[j] for j in (*order, i)], 0)))))
    return order


@pytest.mark.parametrize("most", [1, 4, 20, 50])
def test_both_forms_one_image_at_a_time(most: int) -> None:
    differ = 0
    for seed in range(5):
        features, _ = blobs(1, 20, seed=seed)
        again, once = herd(features, most).tolist(), herd(features, most, replacement=False).tolist()
        assert again == by_the_official_loop(features, most) and once == nearest_running_mean(features, most)
        differ += again != once
    assert most < 20 or differ, "the two are different orders"


def test_the_lengths_of_features_do_not_count() -> None:
    features, _ = blobs(1, 12)
    longer = features * torch.rand(12, 1, dtype=torch.float64).add(0.1)
    assert herd(features, 6).equal(herd(longer, 6))


def test_fewer_places_are_the_first_of_more() -> None:
    features, _ = blobs(1, 15)
    for replacement in (True, False):
        assert herd(features, 4, replacement).equal(herd(features, 11, replacement)[:4])


def test_an_image_that_is_never_chosen_comes_last() -> None:
    features = torch.eye(3, dtype=torch.float64)[[0, 1, 1, 0, 2]]
    assert herd(features, 5).tolist() == [0, 1, 4, 2, 3]


def test_the_mean_of_images_and_mirror_images() -> None:
    features, mirrored = blobs(1, 5)[0], blobs(1, 5, seed=1)[0]
    for given in (None, mirrored):
        rows = [x / x.norm() for x in (*features, *(() if given is None else given))]
        mean = torch.stack(rows).mean(0)
        torch.testing.assert_close(mean_of(features, given), mean / mean.norm())
