"""Random projection and ridge regression by hand, and whatever the split into tasks."""

from __future__ import annotations

import pytest
import torch
from incremental.test_ncm import SPLITS
from incremental.tiny import after, blobs, coming, kept
from torch import Tensor

from unlabeled.incremental.strategies import ranpac
from unlabeled.incremental.strategies.ranpac import RIDGES, Config, chosen_ridge, solved, sums
from unlabeled.incremental.strategy import Kept, Seen

FIXED = Config(dim=20, ridge=0.3)


def walk(strategy: Config, x: Tensor, y: Tensor, sizes: tuple[int, ...], memory: int = 0, seed: int = 0) -> Kept:
    """What is kept after all tasks, of images of the task and of `memory` of each old class."""
    state, old = kept(), 0
    for number, new in enumerate(sizes):
        mine = (y >= old) & (y < old + new)
        for label in range(old):
            mine |= (y == label) & ((y == label).cumsum(0) <= memory)
        state = kept(strategy.learnt(after(x[mine], y[mine]), coming(number, old, new, seed=seed), state))
        old += new
    return state


def test_the_head_solves_the_ridge_regression() -> None:
    x, y = blobs(3, 9)
    state = walk(FIXED, x, y, (3,))
    h = (x @ state.tensors["projection"]).relu()
    onehot = torch.eye(3, dtype=torch.float64)[y]
    head = torch.linalg.solve(h.T @ h + 0.3 * torch.eye(20, dtype=torch.float64), h.T @ onehot)
    torch.testing.assert_close(state.tensors["head"], head)
    torch.testing.assert_close(FIXED.scores(Seen(x, x), state), h @ head)
    assert state.tensors["ridge"] == 0.3


@pytest.mark.parametrize("memory", [0, 2])
def test_with_a_fixed_ridge_the_split_into_tasks_changes_nothing(memory: int) -> None:
    x, y = blobs(6, 9)
    one, *others = (walk(FIXED, x, y, sizes, memory).tensors for sizes in SPLITS)
    for other in others:
        for name, tensor in one.items():
            torch.testing.assert_close(other[name], tensor, rtol=1e-11, atol=1e-11)


def test_the_images_are_summed_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    x, y = blobs(3, 9)
    projection = torch.randn(6, 5, dtype=torch.float64)
    whole = sums(x, y, projection, 3)
    monkeypatch.setattr(ranpac, "PART", 4)
    for part, all_at_once in zip(sums(x, y, projection, 3), whole, strict=True):
        torch.testing.assert_close(part, all_at_once)


def test_the_projection_is_of_the_recipes_seed_alone() -> None:
    x, y = blobs(4, 9)
    one, two = (walk(FIXED, x, y, sizes).tensors["projection"] for sizes in ((4,), (1, 3)))
    assert one.equal(two) and not one.equal(walk(FIXED, x, y, (4,), seed=1).tensors["projection"])
    drawn = walk(Config(dim=500, ridge=1.0), x, y, (4,)).tensors["projection"]
    assert FIXED.drawn(6, coming(2)).equal(one)
    assert drawn.shape == (6, 500) and abs(float(drawn.std()) - 1) < 0.05 and abs(float(drawn.mean())) < 0.1


@pytest.mark.parametrize("dim", [7, 60])
def test_the_ridge_of_the_least_error_on_the_last_fifth(dim: int) -> None:
    """One ridge after the other, where there are more images than dimensions and where there are fewer."""
    found = set()
    for seed in range(4):
        x, y = blobs(4, 8, seed=seed)
        order = torch.randperm(32)
        x, y, projection = x[order] * 10.0 ** (seed - 2), y[order], torch.randn(6, dim, dtype=torch.float64)
        h, onehot = (x @ projection).relu(), torch.eye(6, dtype=torch.float64)[y]
        errors = []
        for ridge in RIDGES[4:]:  # smaller ones are nothing but rounding where a plain solver meets them
            gram = h[:25].T @ h[:25] + ridge * torch.eye(dim, dtype=torch.float64)
            errors.append(
                float((h[25:] @ torch.linalg.solve(gram, h[:25].T @ onehot[:25]) - onehot[25:]).square().sum())
            )
        best = RIDGES[4:][errors.index(min(errors))]
        for classes in (4, 6):  # those that none of the images has change nothing
            assert chosen_ridge(x, y, projection, classes) == best
        found.add(best)
    assert len(found) > 1 and len(RIDGES) == 17


def test_the_fifth_is_drawn_from_seed_and_task(monkeypatch: pytest.MonkeyPatch) -> None:
    """In the images' own order the last fifth would be of the last class alone."""
    x, y = blobs(5, 8)
    held: list[Tensor] = []

    def chosen(features: Tensor, labels: Tensor, *_: object) -> float:
        held.append(features[32:])
        assert sorted(map(tuple, features.tolist())) == sorted(map(tuple, x.tolist()))
        assert len(set(labels[32:].tolist())) > 1
        return 1.0

    monkeypatch.setattr(ranpac, "chosen_ridge", chosen)
    for number, seed in ((0, 0), (0, 0), (0, 1), (2, 0)):
        Config(dim=30).learnt(after(x, y), coming(number, 0, 5, seed=seed), kept())
    assert held[0].equal(held[1]) and not held[0].equal(held[2]) and not held[0].equal(held[3])


def test_so_few_images_that_no_fifth_is_left_take_one() -> None:
    x, y = blobs(1, 1)
    assert walk(Config(dim=5), x, y, (1,)).tensors["ridge"] == 1


def test_a_matrix_without_a_factor_is_solved_all_the_same() -> None:
    torch.manual_seed(0)
    h, targets = 1e6 * torch.randn(3, 8, dtype=torch.float64), torch.eye(3, dtype=torch.float64)
    gram, products = h.T @ h, h.T @ targets
    assert int(torch.linalg.cholesky_ex(gram + 1e-8 * torch.eye(8, dtype=torch.float64))[1])
    # the same head from the small matrix of images, which has a factor
    expected = h.T @ torch.linalg.solve(h @ h.T + 1e-8 * targets, targets)
    off = (solved(gram, products, 1e-8) - expected).abs().max() / expected.abs().max()
    assert off < 1e-4


def test_the_plan_says_what_it_costs() -> None:
    assert Config(dim=10_000).plan(10) == "ranpac keeps a Gram matrix of 10000 x 10000 numbers, 0.8 GB"
