"""k-means (Lloyd 1982), begun by k-means++ (Arthur & Vassilvitskii 2007)."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

STEPS = 50


def kmeans(x: Tensor, k: int, rng: np.random.Generator) -> Tensor:
    """The cluster of each of the vectors [n, D], numbered by size, the largest 0: [n] int64."""
    centres = _begun(x, min(k, len(x)), rng)
    cluster = _closest(x, centres)
    for _ in range(STEPS):
        centres = torch.stack([_middle(x[cluster == i], centre) for i, centre in enumerate(centres)])
        moved = _closest(x, centres)
        if torch.equal(moved, cluster):
            break
        cluster = moved
    by_size = torch.bincount(cluster, minlength=len(centres)).argsort(descending=True, stable=True)
    return by_size.argsort()[cluster]


def _begun(x: Tensor, k: int, rng: np.random.Generator) -> Tensor:
    """Centres among the vectors, each drawn in proportion to its squared distance from the nearest one so far."""
    chosen = [int(rng.integers(len(x)))]
    while len(chosen) < k:
        away = torch.cdist(x, x[chosen]).amin(1).square().double().cpu().numpy()
        chosen.append(
            int(np.searchsorted(np.cumsum(away), rng.random() * away.sum(), side="right").clip(0, len(x) - 1))
        )
    return x[chosen]


def _closest(x: Tensor, centres: Tensor) -> Tensor:
    return torch.cdist(x, centres).argmin(1)


def _middle(x: Tensor, before: Tensor) -> Tensor:
    """The mean of a cluster's vectors; an empty one stays where it was."""
    return x.mean(0) if len(x) else before
