"""Neighbours against a loop over all pairs, and what follows from them."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from unlabeled.look import neighbours
from unlabeled.look.neighbours import Group, Neighbours, directions, distances, doubt, duplicates, nearest


def features(n: int = 40, width: int = 5) -> Tensor:
    return torch.randn(n, width, generator=torch.Generator().manual_seed(0)) + 3


def cosine(a: np.ndarray, b: np.ndarray) -> float:
    return sum(float(x) * float(y) for x, y in zip(a, b, strict=True)) / math.sqrt(float(a @ a) * float(b @ b))


@pytest.mark.parametrize("elements", [2**24, 90, 1])
def test_neighbours_are_those_of_exact_search(monkeypatch: pytest.MonkeyPatch, elements: int) -> None:
    monkeypatch.setattr(neighbours, "CHUNK_ELEMENTS", elements)
    x = features().double().numpy()
    centred = x - x.mean(0)
    found = nearest(directions(features()), 39)
    few = nearest(directions(features()), 4)
    assert torch.equal(few.numbers, found.numbers[:, :4])
    for i in range(len(x)):
        pairs = sorted(((cosine(centred[i], centred[j]), j) for j in range(len(x)) if j != i), reverse=True)
        assert found.numbers[i].tolist() == [j for _, j in pairs]
        assert found.cosines[i].tolist() == pytest.approx([value for value, _ in pairs], abs=1e-5)


def test_there_are_at_most_all_others() -> None:
    assert nearest(directions(features(3)), 10).numbers.shape == (3, 2)
    assert distances(nearest(directions(features(1)), 10)).tolist() == [0]


def test_a_lonely_picture_is_the_outlier() -> None:
    x = torch.eye(6)[[0, 0, 0, 1, 1, 1, 2]] + 0.01 * torch.arange(7).unsqueeze(1)
    near = nearest(torch.nn.functional.normalize(x, dim=1), 2)
    assert int(distances(near).argmax()) == 6
    assert distances(near)[0].item() == pytest.approx(sum(1 - value for value in near.cosines[0].tolist()) / 2)


def test_doubt_is_the_entropy_of_the_votes() -> None:
    numbers = torch.tensor([[1, 2, 3, 4], [2, 3, 4, 5], [0, 1, 0, 1], [5, 5, 0, 1]])
    labels = torch.tensor([0, 0, 1, 1, 2, -1])
    found = doubt(Neighbours(torch.ones(4, 4), numbers), labels)
    mixed = -(0.5 * math.log(0.5) + 2 * 0.25 * math.log(0.25)) / math.log(3)
    thirds = -(2 / 3 * math.log(2 / 3) + 1 / 3 * math.log(1 / 3)) / math.log(3)
    assert found.tolist() == pytest.approx([mixed, thirds, 0, 0], abs=1e-6)


def test_duplicates_are_joined_through_others() -> None:
    cosines = torch.tensor([[0.99, 0.5], [0.99, 0.985], [0.985, 0.1], [0.2, 0.1], [0.999, 0.3], [0.999, 0.3]])
    numbers = torch.tensor([[1, 3], [0, 2], [1, 0], [0, 1], [5, 0], [4, 0]])
    found = duplicates(Neighbours(cosines, numbers), 0.98)
    assert [group.numbers for group in found] == [[4, 5], [0, 1, 2]]
    assert [group.cosine for group in found] == pytest.approx([0.999, 0.985])
    assert duplicates(Neighbours(cosines, numbers), 1.0) == []


def test_copies_are_found_among_features() -> None:
    x = features(60, 16)
    x[50], x[7] = x[3] + 1e-4, x[3]
    found = duplicates(nearest(directions(x), 10), 0.98)
    assert found == [Group([3, 7, 50], pytest.approx(1, abs=1e-4))]
