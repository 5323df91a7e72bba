"""Herding: which images of a class stand for it (iCaRL, Rebuffi et al. 2017, algorithm 4)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

ROUNDS = 1000  # of the official loop, after which images take places in their order


def herd(features: Tensor, most: int, replacement: bool = True) -> Tensor:
    """The rows of the images of one class to keep, best first: [min(most, n)] int64.

    Features are scaled to unit length; the mean that is approached is not scaled again.

    Args:
        features: [n, D].
        most: places.
        replacement: as in the official code, an image may be chosen again, which moves the sum and takes no place;
            without, the image comes next that brings the mean of those kept nearest to the mean of all.
    """
    unit = F.normalize(features.double(), dim=1)
    return _again(unit, min(most, len(unit))) if replacement else _once(unit, min(most, len(unit)))


def _again(unit: Tensor, places: int) -> Tensor:
    mean = unit.mean(0)
    w, chosen = mean, dict[int, None]()
    for _ in range(ROUNDS):
        if len(chosen) == places:
            break
        i = int((unit @ w).argmax())
        chosen[i] = None
        w = w + mean - unit[i]
    rest = (row for row in range(len(unit)) if row not in chosen)
    return torch.tensor([*chosen, *rest][:places], dtype=torch.int64)


def _once(unit: Tensor, places: int) -> Tensor:
    mean, total, chosen = unit.mean(0), torch.zeros_like(unit[0]), list[int]()
    free = torch.ones(len(unit), dtype=torch.bool, device=unit.device)
    for place in range(1, places + 1):
        away = (mean - (total + unit) / place).square().sum(1)
        i = int(away.where(free, torch.inf).argmin())
        chosen.append(i)
        free[i] = False
        total = total + unit[i]
    return torch.tensor(chosen, dtype=torch.int64)


def mean_of(features: Tensor, mirrored: Tensor | None = None) -> Tensor:
    """The direction [D] of the mean of unit features [m, D], and of those of the mirrored images where given."""
    both = features if mirrored is None else torch.cat([features, mirrored])
    return F.normalize(F.normalize(both, dim=1).mean(0), dim=0)
