"""Agreement of clusters with true classes: Hungarian accuracy, NMI, ARI and purity, all in percent.

Clusters are matched with classes once for all images (Vaze et al. 2022, section 4.1, "v2"). A matching for the known
classes and another for the new ones would let one cluster count for both.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment

from unlabeled.report.intervals import bootstrap

Numbers = NDArray[np.int64]


class Accuracy(NamedTuple):
    """Shares of images whose cluster is matched with their class.

    Attributes:
        everything: of all images.
        old: of those of known classes; None = there are none.
        new: of those of new classes; None = there are none.
        hits: [n] bool, each image.
    """

    everything: float
    old: float | None
    new: float | None
    hits: NDArray[np.bool_]


def contingency(clusters: Numbers, classes: Numbers) -> Numbers:
    """The number of images of each cluster and class [k, C]; both are numbered from 0."""
    found = np.zeros((clusters.max(initial=-1) + 1, classes.max(initial=-1) + 1), np.int64)
    np.add.at(found, (clusters, classes), 1)
    return found


def matching(counts: Numbers) -> Numbers:
    """The class of each cluster [k] by which most images of counts [k, C] are right; at least C = no class.

    Hungarian algorithm (Kuhn 1955) on the square matrix, padded with zeros: each class goes to one cluster.
    """
    size = max(counts.shape)
    square = np.zeros((size, size), np.int64)
    square[: counts.shape[0], : counts.shape[1]] = counts
    matched: Numbers = linear_sum_assignment(square.max(initial=0) - square)[1]
    return matched[: counts.shape[0]]


def accuracy(clusters: Numbers, classes: Numbers, known: int) -> Accuracy:
    """Match clusters [n] with classes [n], at least one image, once; classes below `known` are old."""
    hits = matching(contingency(clusters, classes))[clusters] == classes
    old = classes < known
    return Accuracy(100 * float(hits.mean()), _share(hits[old]), _share(hits[~old]), hits)


def _share(hits: NDArray[np.bool_]) -> float | None:
    return 100 * float(hits.mean()) if len(hits) else None


def purity(counts: Numbers) -> float:
    """The share of images of each cluster's most frequent class (Manning, Raghavan & Schütze 2008, section 16.3)."""
    return 100 * float(counts.max(1).sum() / counts.sum())


def nmi(counts: Numbers) -> float:
    """Mutual information over the mean of both entropies (Vinh et al. 2010): 100 where both are equal up to names.

    100, too, where there is one cluster and one class.
    """
    p = counts / counts.sum()
    rows, columns = _entropy(p.sum(1)), _entropy(p.sum(0))
    if rows + columns == 0:
        return 100.0
    mutual = rows + columns - _entropy(p.ravel())
    return float(np.clip(200 * mutual / (rows + columns), 0, 100))


def ari(counts: Numbers) -> float:
    """Adjusted Rand index (Hubert & Arabie 1985): 0 is what chance gives, 100 where both are equal up to names."""
    pairs, rows, columns = (_pairs(counts), _pairs(counts.sum(1)), _pairs(counts.sum(0)))
    chance = rows * columns / _pairs(counts.sum()) if counts.sum() > 1 else 0.0
    largest = (rows + columns) / 2
    return 100.0 if largest == chance else 100 * (pairs - chance) / (largest - chance)


def scores(clusters: Numbers, classes: Numbers, known: int) -> dict[str, Any]:
    """All measures of clusters [n] by name, as JSON; `intervals` of accuracies, 95 % by bootstrap over images."""
    found, counts, old = accuracy(clusters, classes, known), contingency(clusters, classes), classes < known
    groups = {"all": found.hits, "old": found.hits[old], "new": found.hits[~old]}
    return {
        "all": found.everything,
        "old": found.old,
        "new": found.new,
        "intervals": {name: bootstrap(100.0 * hits) if len(hits) else None for name, hits in groups.items()},
        "pictures": {name: len(hits) for name, hits in groups.items()},
        "nmi": nmi(counts),
        "ari": ari(counts),
        "purity": purity(counts),
    }


def _entropy(p: NDArray[np.float64]) -> float:
    p = p[p > 0]
    return float(-(p * np.log(p)).sum())


def _pairs(counts: Any) -> float:
    """The number of pairs of images that share a cell."""
    counts = np.asarray(counts, dtype=np.float64)
    return float((counts * (counts - 1) / 2).sum())
