"""Exact nearest neighbours of features by cosine, and what follows from them: outliers, near-duplicates, doubt."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

CHUNK_ELEMENTS = 2**24  # cosines held at once: 64 MiB


class Neighbours(NamedTuple):
    """The nearest neighbours of every image, the nearest first: cosines [n, k] and numbers [n, k]."""

    cosines: Tensor
    numbers: Tensor


class Group(NamedTuple):
    """Near-duplicates: their numbers, ascending, and the smallest cosine of a pair that joined two of them."""

    numbers: list[int]
    cosine: float


def directions(features: Tensor) -> Tensor:
    """Features [n, D] of length one after their mean is taken off, float32: what all cosines here are of.

    Features of an encoder share a large part, which would make all cosines about 1.
    """
    x = features.float()
    return F.normalize(x - x.mean(0), dim=1)


def nearest(x: Tensor, k: int) -> Neighbours:
    """The k nearest others of each of the vectors of length one [n, D], by exact search; at most all others."""
    k = min(k, len(x) - 1)
    rows = max(1, CHUNK_ELEMENTS // max(1, len(x)))
    found = []
    for start in range(0, len(x), rows):
        cosines = x[start : start + rows] @ x.T
        own = torch.arange(start, start + len(cosines), device=x.device)
        cosines.scatter_(1, own.unsqueeze(1), -math.inf)
        found.append(cosines.topk(k))
    return Neighbours(torch.cat([one.values for one in found]), torch.cat([one.indices for one in found]))


def distances(near: Neighbours) -> Tensor:
    """How far every image lies from its neighbours: the mean of 1 - cosine [n]."""
    return (1 - near.cosines).mean(1) if near.cosines.shape[1] else near.cosines.new_zeros(len(near.cosines))


def doubt(near: Neighbours, labels: Tensor) -> Tensor:
    """The entropy of the labels [n] of every image's neighbours, as a share of the largest possible [n]: 0 = all of one
    class, 1 = as mixed as so many neighbours can be. Unlabelled neighbours (-1) do not vote."""
    classes = int(labels.max()) + 1
    votes = F.one_hot(labels[near.numbers] + 1, classes + 1)[..., 1:].sum(1).float()
    shares = votes / votes.sum(1, keepdim=True).clamp(min=1)
    entropy = -torch.xlogy(shares, shares).sum(1)
    most = math.log(max(2, min(classes, near.numbers.shape[1])))
    return entropy / most


def duplicates(near: Neighbours, threshold: float) -> list[Group]:
    """Groups of images that are joined by pairs of neighbours with a cosine of at least `threshold`, the closest
    first."""
    rows, columns = (near.cosines >= threshold).nonzero(as_tuple=True)
    pairs = torch.stack([rows, near.numbers[rows, columns]], dim=1).tolist()
    leader = list(range(len(near.numbers)))

    def root(number: int) -> int:
        while leader[number] != number:
            leader[number] = leader[leader[number]]
            number = leader[number]
        return number

    for one, other in pairs:
        low, high = sorted((root(one), root(other)))
        leader[high] = low
    members: dict[int, set[int]] = {}
    weakest: dict[int, float] = {}
    for (one, other), cosine in zip(pairs, near.cosines[rows, columns].tolist(), strict=True):
        group = root(one)
        members.setdefault(group, set()).update((one, other))
        weakest[group] = min(weakest.get(group, math.inf), cosine)
    found = [Group(sorted(numbers), weakest[group]) for group, numbers in members.items()]
    return sorted(found, key=lambda group: (-group.cosine, group.numbers))
