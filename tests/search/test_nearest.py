"""Nearest features, against a naive search."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from unlabeled.errors import UserError
from unlabeled.search import nearest
from unlabeled.search.nearest import Kind, ask, build, exact


def naive(features: Tensor, query: Tensor, k: int) -> list[tuple[int, float]]:
    """Number and cosine of the nearest, one by one."""
    cosines = [float(torch.dot(query, one) / (query.norm() * one.norm())) for one in features]
    return sorted(enumerate(cosines), key=lambda pair: -pair[1])[:k]


def split(features: Tensor, sizes: tuple[int, ...]) -> Iterator[Tensor]:
    return iter(features.split(list(sizes)))


@pytest.mark.parametrize("sizes", [(40,), (1, 30, 9), (20, 20)])
@pytest.mark.parametrize("k", [1, 7, 40, 99])
def test_exact_search_is_the_naive_one(sizes: tuple[int, ...], k: int) -> None:
    rng = torch.Generator().manual_seed(k)
    features, queries = torch.randn(40, 6, generator=rng) + 1, torch.randn(3, 6, generator=rng)
    found = exact(split(features, sizes), queries, k)
    assert found.numbers.shape == (3, min(k, 40))
    for query, numbers, cosines in zip(queries, found.numbers.tolist(), found.cosines.tolist(), strict=True):
        expected = naive(features, query, k)
        assert numbers == [number for number, _ in expected]
        assert cosines == pytest.approx([cosine for _, cosine in expected], abs=1e-5)


def test_a_flat_index_finds_the_same() -> None:
    rng = torch.Generator().manual_seed(0)
    features, queries = torch.randn(90, 8, generator=rng), torch.randn(5, 8, generator=rng)
    index, kind = build(lambda: split(features, (50, 40)), 90, 8)
    found, expected = ask(index, kind, queries, 7), exact([features], queries, 7)
    assert kind == Kind(0, 0, 1.0) and torch.equal(found.numbers, expected.numbers)
    assert torch.allclose(found.cosines, expected.cosines, atol=1e-5)


def test_a_large_index_says_its_recall(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nearest, "FLAT", 1000)
    rng = torch.Generator().manual_seed(0)
    features = torch.randn(3000, 8, generator=rng)
    index, kind = build(lambda: split(features, (1500, 1500)), 3000, 8)
    assert kind.cells == round(4 * 3000**0.5) and 1 <= kind.probes < kind.cells
    queries = torch.randn(200, 8, generator=rng)  # others than it was tuned on
    found, truth = ask(index, kind, queries, 10).numbers, exact([features], queries, 10).numbers
    share = sum(len({*a} & {*b}) for a, b in zip(found.tolist(), truth.tolist(), strict=True)) / 2000
    assert 0.98 <= kind.recall <= 1 and share > 0.9
    few = kind._replace(probes=1)
    poor = ask(index, few, queries, 10).numbers
    assert sum(len({*a} & {*b}) for a, b in zip(poor.tolist(), truth.tolist(), strict=True)) / 2000 < 0.8


def test_without_faiss_the_person_hears_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "faiss", None)
    with pytest.raises(UserError, match=r"pip install faiss-cpu`. Without --build"):
        build(lambda: iter(()), 0, 8)
