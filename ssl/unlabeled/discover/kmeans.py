"""Semi-supervised k-means (Vaze et al., CVPR 2022, section 3.2): labelled images stay in the clusters of their classes.

Without labelled images it is k-means (Lloyd 1982), begun by k-means++ (Arthur & Vassilvitskii 2007).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

STEPS, TOLERANCE = 200, 1e-4
CHUNK_ELEMENTS = 2**22  # distances held at once: 32 MiB


class Labelled(NamedTuple):
    """Labelled images: features x [n, D] and classes y [n] int64. Every class from 0 to `known` - 1 has one or more."""

    x: Tensor
    y: Tensor
    known: int

    @classmethod
    def none(cls, like: Tensor) -> Labelled:
        """No labelled images, for features such as `like` [m, D]."""
        return cls(like[:0], torch.zeros(0, dtype=torch.int64, device=like.device), 0)

    @property
    def totals(self) -> Totals:
        """Their sums, counts and squared lengths by class."""
        counts = self.y.bincount(minlength=self.known).to(self.x.dtype)
        sums = _one_hot(self.y, self.known, self.x.dtype).T @ self.x
        return Totals(sums, counts, float(self.x.square().sum()))

    def inertia(self, centres: Tensor) -> float:
        """The sum of squared distances to the centres of their own classes."""
        return float((self.x - centres[self.y]).square().sum())


class Totals(NamedTuple):
    """Sums of features [k, D] and numbers of images [k] by cluster; `inertia` is a sum of squares over all."""

    sums: Tensor
    counts: Tensor
    inertia: float


class Clustering(NamedTuple):
    """The assignment of least inertia that was met.

    Attributes:
        labels: [m] int64, the cluster of each unlabelled image; clusters below the number of known classes are theirs.
        centres: [k, D], the means AFTER that assignment.
        inertia: the sum of squared distances of labelled and unlabelled images to the centres BEFORE they moved.
        iterations: number of assignments that were made.
    """

    labels: Tensor
    centres: Tensor
    inertia: float
    iterations: int


def begin(labelled: Labelled, x: Tensor, k: int, uniforms: Sequence[float]) -> Tensor:
    """Centres to start from [k, D]: means of the known classes, then k-means++ among the unlabelled images.

    Each further centre is image i with probability d_i^2 / sum, d its distance to the nearest centre so far; the first
    of all, without known classes, is any image alike.

    Args:
        labelled: of the known classes, at most k.
        x: [m, D] features of unlabelled images, m > 0.
        k: number of clusters.
        uniforms: a draw in [0, 1) for each further centre: the first image whose cumulative share reaches it is taken.
    """
    totals = labelled.totals
    centres = [*(totals.sums / totals.counts.unsqueeze(1))]
    away = torch.full_like(x[:, 0], torch.inf)
    for centre in centres:
        away = torch.minimum(away, (x - centre).square().sum(1))
    for uniform in uniforms[: k - labelled.known]:
        # all alike where there is no centre yet, or every image lies on one
        shares = away if centres and away.sum() > 0 else torch.ones_like(away)
        reached = ((shares / shares.sum()).cumsum(0) >= uniform).nonzero()
        centres.append(x[int(reached[0]) if len(reached) else len(x) - 1])
        away = torch.minimum(away, (x - centres[-1]).square().sum(1))
    return torch.stack(centres)


def fit(labelled: Labelled, x: Tensor, start: Tensor, steps: int = STEPS, tolerance: float = TOLERANCE) -> Clustering:
    """Move centres until they rest. A cluster without any image keeps its centre.

    Args:
        labelled: images that stay in the clusters of their classes.
        x: [m, D] features of unlabelled images.
        start: [k, D] centres, those of the known classes first.
        steps: assignments at most.
        tolerance: (sum of the centres' shifts)^2 below which they rest.
    """
    fixed, centres = labelled.totals, start
    best: Clustering | None = None
    for step in range(1, steps + 1):
        labels, found = assign(x, centres)
        inertia = found.inertia + labelled.inertia(centres)
        sums, counts = found.sums.clone(), found.counts.clone()
        sums[: labelled.known] += fixed.sums
        counts[: labelled.known] += fixed.counts
        moved = torch.where(counts.unsqueeze(1) > 0, sums / counts.clamp_min(1).unsqueeze(1), centres)
        if best is None or inertia < best.inertia:
            best = Clustering(labels, moved, inertia, step)
        shift, centres = float((moved - centres).norm(dim=1).sum()), moved
        if shift**2 < tolerance:
            break
    assert best is not None
    return best._replace(iterations=step)


def assign(x: Tensor, centres: Tensor) -> tuple[Tensor, Totals]:
    """The nearest of the centres [k, D] to each image [m, D], of equally near ones the first: [m]; and totals of the
    clusters, `inertia` of squared distances."""
    labels, inertia = [], 0.0
    sums, counts = torch.zeros_like(centres), torch.zeros_like(centres[:, 0])
    for part in x.split(max(1, CHUNK_ELEMENTS // len(centres))):
        away = squared_distances(part, centres)
        nearest = away.min(1)
        member = _one_hot(nearest.indices, len(centres), x.dtype)
        sums, counts = sums + member.T @ part, counts + member.sum(0)
        inertia += float(nearest.values.sum())
        labels.append(nearest.indices)
    return torch.cat(labels), Totals(sums, counts, inertia)


def squared_distances(x: Tensor, centres: Tensor) -> Tensor:
    """Squared distances [m, k] between rows of x [m, D] and of centres [k, D]."""
    away = x.square().sum(1, keepdim=True) - 2 * x @ centres.T + centres.square().sum(1)
    return away.clamp_min(0)


def _one_hot(labels: Tensor, count: int, dtype: torch.dtype) -> Tensor:
    """[m, count]: sums by products of matrices add in one order, whatever the device."""
    return torch.zeros(len(labels), count, dtype=dtype, device=labels.device).scatter_(1, labels.unsqueeze(1), 1.0)
