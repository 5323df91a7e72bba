"""Measures of clusters against counting over pairs and permutations, and scikit-learn's."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from unlabeled.discover.accuracy import accuracy, ari, contingency, matching, nmi, purity, scores

RANDOM = np.random.default_rng(0)


def drawn(n: int, clusters: int, classes: int) -> tuple[np.ndarray, np.ndarray]:
    return RANDOM.integers(clusters, size=n), RANDOM.integers(classes, size=n)


@pytest.mark.parametrize("clusters, classes", [(4, 4), (6, 3), (2, 5), (1, 3), (3, 1)])
def test_the_best_of_all_matchings(clusters: int, classes: int) -> None:
    a, b = drawn(50, clusters, classes)
    size = max(clusters, classes)
    orders = (np.array(order) for order in itertools.permutations(range(size)))
    best = max(float((order[a] == b).mean()) for order in orders)
    found = accuracy(a, b, 1)
    assert found.everything == pytest.approx(100 * best) and found.hits.mean() == pytest.approx(best)
    matched = matching(contingency(a, b))
    assert len(set(matched.tolist())) == len(matched), "a class belongs to one cluster"


def test_one_matching_for_all_groups() -> None:
    """A cluster that holds a known and a new class counts for one of them."""
    clusters, classes = np.array([0] * 5 + [0] * 4 + [1]), np.array([0] * 5 + [1] * 4 + [1])
    found = accuracy(clusters, classes, 1)
    assert (found.everything, found.old, found.new) == (60, 100, pytest.approx(20))
    assert accuracy(clusters, classes, 0).old is None and accuracy(clusters, classes, 2).new is None


def test_pairs_by_counting() -> None:
    a, b = drawn(40, 4, 3)
    pairs = list(itertools.combinations(range(40), 2))
    both = sum(a[i] == a[j] and b[i] == b[j] for i, j in pairs)
    rows, columns = (sum(labels[i] == labels[j] for i, j in pairs) for labels in (a, b))
    chance = rows * columns / len(pairs)
    assert ari(contingency(a, b)) == pytest.approx(100 * (both - chance) / ((rows + columns) / 2 - chance))


def test_as_scikit_learn() -> None:
    metrics = pytest.importorskip("sklearn.metrics")
    for clusters, classes in ((3, 3), (7, 2), (1, 4), (1, 1)):
        a, b = drawn(60, clusters, classes)
        b[: len(b) // 2] = np.minimum(a[: len(b) // 2], classes - 1)
        counts = contingency(a, b)
        assert nmi(counts) == pytest.approx(100 * metrics.normalized_mutual_info_score(b, a), abs=1e-9)
        assert ari(counts) == pytest.approx(100 * metrics.adjusted_rand_score(b, a), abs=1e-9)


def test_names_of_clusters_do_not_matter() -> None:
    a, _ = drawn(30, 5, 2)
    counts = contingency(a, (a + 2) % 5)
    assert (nmi(counts), ari(counts), purity(counts)) == (pytest.approx(100), 100, 100)
    assert purity(contingency(np.zeros(10, np.int64), np.arange(10) % 2)) == 50
    assert ari(contingency(np.zeros(1, np.int64), np.zeros(1, np.int64))) == 100


def test_all_measures_by_name() -> None:
    a, b = drawn(80, 4, 4)
    found = scores(a, b, 2)
    assert found["pictures"] == {"all": 80, "old": int((b < 2).sum()), "new": int((b >= 2).sum())}
    for group in ("all", "old", "new"):
        low, high = found["intervals"][group]
        assert low < found[group] < high
    assert scores(a, b, 4)["new"] is None and scores(a, b, 4)["intervals"]["new"] is None
