"""Semi-supervised k-means against loops over pictures."""

from __future__ import annotations

import math

import pytest
import torch
from parity.naive_discovery import moved
from torch import Tensor

from unlabeled.discover import kmeans
from unlabeled.discover.kmeans import Labelled, begin, fit, squared_distances


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("chunk", [2**22, 21])
def test_as_picture_by_picture(chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kmeans, "CHUNK_ELEMENTS", chunk)
    labelled, x, start = Labelled(drawn(9, 4), torch.arange(9) % 3, 3), drawn(31, 4, seed=1), drawn(5, 4, seed=2)
    expected = moved(labelled.x, labelled.y, x, list(start), 100)
    found = fit(labelled, x, start)
    assert torch.cat([labelled.y, found.labels]).equal(expected["out/labels"])
    torch.testing.assert_close(found.centres, expected["out/centers"])
    assert found.inertia == pytest.approx(expected["out/inertia"].item())
    assert found.iterations == expected["out/iterations"].item() > 2


def test_starts_by_hand() -> None:
    """Squared distances 0, 1, 9 and 16 to the class at 0: cumulative shares 0, 1/26, 10/26, 1."""
    labelled = Labelled(torch.tensor([[-1.0], [1.0]]).double(), torch.tensor([0, 0]), 1)
    x = torch.tensor([[0.0], [1.0], [3.0], [4.0]]).double()
    for uniform, picture in ((0.0, 0), (0.03, 1), (0.05, 2), (0.38, 2), (0.39, 3), (0.999, 3)):
        found = begin(labelled, x, 2, [uniform])
        assert found.tolist() == [[0.0], x[picture].tolist()]
    # the next one counts distances to the nearest of both: 0, 1, 1, 0
    assert begin(labelled, x, 3, [0.999, 0.5]).flatten().tolist() == [0, 4, 1]
    assert begin(labelled, x, 3, [0.999, 0.51]).flatten().tolist() == [0, 4, 3]


def test_the_first_of_plain_centres_is_any_picture_alike() -> None:
    x = torch.tensor([[0.0], [100.0], [100.0], [100.0]]).double()
    first = [float(begin(Labelled.none(x), x, 1, [uniform])) for uniform in (0.2, 0.3, 0.9)]
    assert first == [0, 100, 100]


def test_labelled_pictures_never_move() -> None:
    """The class of the left cloud has its labelled pictures in the right one."""
    x = torch.cat([drawn(20, 2) - 9, drawn(20, 2, seed=1) + 9])
    labelled = Labelled(torch.tensor([[9.0, 9.0]] * 3).double(), torch.zeros(3, dtype=torch.int64), 1)
    found = fit(labelled, x, begin(labelled, x, 2, [0.1]))
    assert set(found.labels[20:].tolist()) == {0} and set(found.labels[:20].tolist()) == {1}
    torch.testing.assert_close(found.centres[0], torch.cat([labelled.x, x[20:]]).mean(0))
    # a start that is wrong for them does not take them away
    swapped = fit(labelled, x, torch.stack([x[:20].mean(0), x[20:].mean(0)]))
    assert set(swapped.labels[:20].tolist()) == {0}
    torch.testing.assert_close(swapped.centres[0], torch.cat([labelled.x, x[:20]]).mean(0))


def test_an_empty_cluster_keeps_its_centre() -> None:
    x, away = drawn(12, 3), torch.full((1, 3), 50.0).double()
    found = fit(Labelled.none(x), x, torch.cat([x[:2], away]))
    assert 2 not in found.labels.tolist() and found.centres[2].tolist() == away[0].tolist()
    assert found.centres.isfinite().all() and math.isfinite(found.inertia)


def test_fewer_different_pictures_than_clusters() -> None:
    x = torch.zeros(5, 2).double()
    start = begin(Labelled.none(x), x, 3, [0.1, 0.5, 0.9])
    assert start.tolist() == [[0, 0]] * 3
    found = fit(Labelled.none(x), x, start)
    assert found.labels.tolist() == [0] * 5 and found.inertia == 0


def test_steps_end() -> None:
    x = drawn(60, 3)
    start = begin(Labelled.none(x), x, 6, torch.linspace(0.05, 0.95, 6).tolist())
    whole = fit(Labelled.none(x), x, start)
    assert whole.iterations > 2
    short = fit(Labelled.none(x), x, start, steps=2)
    assert short.iterations == 2 and short.inertia > whole.inertia
    assert fit(Labelled.none(x), x, start, tolerance=1e9).iterations == 1
    # least inertia comes last where centres are means
    away = squared_distances(x, fit(Labelled.none(x), x, start, steps=whole.iterations - 1).centres)
    assert whole.inertia == pytest.approx(float(away.amin(1).sum()))
