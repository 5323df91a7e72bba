"""The number of classes: what is tried, what is held out, and when it is undecided."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from unlabeled.discover import estimate
from unlabeled.discover.estimate import Curve, around, grid, held_out, split
from unlabeled.discover.kmeans import Clustering, Labelled, begin, fit


def test_numbers_on_a_grid_and_around_the_best() -> None:
    assert grid(10, 50) == [10, 12, 14, 16, 18, 21, 23, 25, 27, 29, 31, 33, 35, 37, 39, 42, 44, 46, 48, 50]
    assert grid(3, 7) == [3, 4, 5, 6, 7] and grid(5, 5) == [5]
    assert len(grid(100, 320)) == 20 and grid(100, 320)[0] == 100 and grid(100, 320)[-1] == 320
    assert around([10, 12, 14], 12) == [11, 13] and around([10, 12, 14], 10) == [11] and around([3, 4, 5], 4) == []
    more = around(grid(100, 320), 158)
    assert len(more) == 10 and min(more) > 146 and max(more) < 170 and 158 not in more


def test_half_of_the_classes_are_held_out_as_if_unknown() -> None:
    x = torch.arange(14).double().unsqueeze(1)
    labelled = Labelled(x, torch.arange(14) % 5, 5)
    out = held_out(np.array([4, 1, 3, 0, 2]))
    assert out.tolist() == [1, 3, 4]
    part = split(labelled, out)
    assert part.kept.known == 2 and part.kept.x.flatten().tolist() == [0, 2, 5, 7, 10, 12]
    assert part.kept.y.tolist() == [0, 1, 0, 1, 0, 1]
    assert part.held.flatten().tolist() == [1, 3, 4, 6, 8, 9, 11, 13]
    assert part.truth.tolist() == [0, 1, 0, 1, 0, 1, 2, 3, 4, 2, 3, 4, 2, 3]


def test_a_held_out_picture_in_the_cluster_of_a_known_class_is_wrong() -> None:
    labelled = Labelled(torch.zeros(6, 1).double(), torch.tensor([0, 0, 1, 1, 1, 1]), 2)
    part = split(labelled, np.array([1]))

    def accuracy(*clusters: int) -> float:
        return estimate.found(part, Clustering(torch.tensor([*clusters, 0, 1, 2]), torch.zeros(3, 1), 0.0, 1))

    assert accuracy(1, 1, 1, 1) == 100 and accuracy(2, 2, 2, 2) == 100
    assert accuracy(1, 1, 2, 0) == 50 and accuracy(1, 1, 1, 0) == 75
    # all of them in it: one more picture than the class has, and it is still that class's
    assert accuracy(0, 0, 1, 1) == 50


def curve(**means: tuple[float, ...]) -> Curve:
    return Curve({int(name[1:]): each for name, each in means.items()})


def test_the_best_number_and_how_far_others_are_as_good() -> None:
    found = curve(k4=(40, 50, 60), k6=(81, 89, 100), k8=(80, 90, 100), k12=(50, 61, 69))
    assert found.best == 8, "of equal means the largest"
    assert found.range == (6, 8) and found.doubt == ""
    rest = np.array([found.accuracies[k] for k in found.numbers])
    rest = rest - rest.mean(0)
    spread = [np.var(row, ddof=1) for row in rest]
    assert found.error == pytest.approx(math.sqrt(np.mean(spread) / 3))
    assert found.json["range"] == [6, 8] and found.json["curve"][1]["accuracies"] == [81, 89, 100]


def test_easier_held_out_classes_are_no_noise() -> None:
    """Seeds differ by what they hold out; a curve that all of them show counts."""
    shifted = curve(k4=(10, 40, 70), k6=(20, 50, 80), k8=(12, 42, 72))
    assert shifted.error == pytest.approx(0, abs=1e-9) and shifted.doubt == ""


def test_a_flat_curve_and_a_rising_one_are_undecided() -> None:
    random = np.random.default_rng(0)
    flat = [Curve({k: tuple(random.normal(60, 5, 3)) for k in range(4, 24)}) for _ in range(100)]
    assert sum("The curve is flat" in one.doubt for one in flat) > 90 and flat[0].json["undecided"]
    assert "The curve is flat" in curve(k4=(100, 100), k5=(100, 100)).doubt
    rising = Curve({k: tuple(3.0 * k + random.normal(0, 1, 3)) for k in range(4, 24)})
    assert rising.doubt == "The best number is the largest that was tried, 23: try more with --most"


def test_as_many_classes_as_there_are() -> None:
    """Nine clouds far from each other, six of them known. Fewer clusters may mix the new ones, which nobody sees."""
    generator = torch.Generator().manual_seed(0)
    centres = F.normalize(torch.randn(9, 16, generator=generator, dtype=torch.float64), dim=1)

    def cloud(y: torch.Tensor) -> torch.Tensor:
        noise = torch.randn(len(y), 16, generator=generator, dtype=torch.float64)
        return F.normalize(centres[y] + 0.08 * noise, dim=1)

    y = torch.arange(60) % 6
    labelled, x = Labelled(cloud(y), y, 6), cloud(torch.arange(180) % 9)
    found: dict[int, list[float]] = {}
    for k in range(6, 15):
        for seed in range(3):
            random = np.random.default_rng((seed, k))
            part = split(labelled, held_out(np.random.default_rng(seed).permutation(6)))
            everything = torch.cat([part.held, x])
            starts = [begin(part.kept, everything, k, random.random(k).tolist()) for _ in range(5)]
            best = min((fit(part.kept, everything, one) for one in starts), key=lambda one: one.inertia)
            found.setdefault(k, []).append(estimate.found(part, best))
    curve = Curve(found)
    assert curve.best == 9 and curve.doubt == "" and curve.mean(9) == 100 and curve.mean(10) < 100
