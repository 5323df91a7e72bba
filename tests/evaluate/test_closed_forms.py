"""Heads in closed form, class means and ridge regression, against naive references and the incremental strategies."""

from __future__ import annotations

import pytest
import torch
from evaluate.test_linear import blobs
from incremental.tiny import after, coming, kept

from unlabeled.evaluate.features import Features
from unlabeled.evaluate.probing import accuracy, exactly, hits_of
from unlabeled.evaluate.protocols.ncm import cosines
from unlabeled.evaluate.protocols.ranpac import Config as Ranpac
from unlabeled.evaluate.protocols.ranpac import ridge_scores
from unlabeled.incremental.strategies import ncm, ranpac
from unlabeled.incremental.strategy import Seen
from unlabeled.randomness import Stream, stream


def sets() -> tuple[Features, Features]:
    return exactly(blobs(31, noise=1.0)), exactly(blobs(12, noise=1.0, seed=1))


def test_angles_to_class_means_one_picture_at_a_time() -> None:
    train, test = sets()
    found = cosines(train, test.x, 3)
    for row, x in zip(found, test.x, strict=True):
        for k in range(3):
            mean = torch.stack([one for one, label in zip(train.x, train.y, strict=True) if label == k]).mean(0)
            assert row[k].item() == pytest.approx(float(x @ mean / (x.norm() * mean.norm())), rel=1e-12)
    strategy = ncm.Config()
    state = kept(strategy.learnt(after(train.x, train.y), coming(0, 0, 3), kept()))
    torch.testing.assert_close(found, strategy.scores(Seen(test.x, test.x), state))


def test_a_head_that_is_solved_for() -> None:
    train, test = sets()
    found, ridge = ridge_scores(train, test.x, 3, Ranpac(dim=20, ridge=0.3), seed=5)
    other, _ = ridge_scores(train, test.x, 3, Ranpac(dim=20, ridge=0.3), seed=6)
    assert ridge == 0.3 and not found.allclose(other)
    projection = torch.from_numpy(stream(5, Stream.RIDGE, 0).standard_normal((8, 20)))
    h, new = (torch.relu(x @ projection) for x in (train.x, test.x))
    onehot = torch.eye(3, dtype=torch.float64)[train.y]
    head = torch.linalg.solve(h.T @ h + 0.3 * torch.eye(20, dtype=torch.float64), h.T @ onehot)
    torch.testing.assert_close(found, new @ head)


def test_the_ridge_is_chosen_without_the_test_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    train, test = sets()
    scores, ridge = ridge_scores(train, test.x, 3, Ranpac(dim=20))
    assert ridge in ranpac.RIDGES and ridge_scores(train, test.x + 7, 3, Ranpac(dim=20))[1] == ridge
    torch.testing.assert_close(scores, ridge_scores(train, test.x, 3, Ranpac(dim=20, ridge=ridge))[0])
    order = stream(0, Stream.RIDGE, 1).permutation(31)
    h = (train.x @ torch.from_numpy(stream(0, Stream.RIDGE, 0).standard_normal((8, 20)))).relu()[order]
    y, errors, eye = torch.eye(3, dtype=torch.float64)[train.y[order]], {}, torch.eye(20, dtype=torch.float64)
    for one in ranpac.RIDGES[5:]:  # smaller ones are rounding
        head = torch.linalg.solve(h[:24].T @ h[:24] + one * eye, h[:24].T @ y[:24])
        errors[one] = float((h[24:] @ head - y[24:]).square().mean())
    assert ridge == min(errors, key=lambda one: errors[one]) != 1
    assert accuracy(hits_of(scores, test.y)) > 60
    monkeypatch.setattr("unlabeled.evaluate.protocols.ranpac.PART", 5)
    torch.testing.assert_close(scores, ridge_scores(train, test.x, 3, Ranpac(dim=20))[0])


def test_a_class_without_a_picture_is_never_named() -> None:
    """Its scores would be 0, and those of the others can be lower."""
    train, test = sets()
    away = Features(-train.x, train.y)
    for scores in (cosines(away, test.x, 4), ridge_scores(away, test.x, 4, Ranpac(dim=20))[0]):
        assert scores.shape == (12, 4) and int(scores.argmax(1).max()) < 3 and scores[:, :3].isfinite().all()
    assert bool((cosines(away, test.x, 4)[:, :3] < 0).all(1).any())
