"""How the parity tests compare samples: the same distributions, within what sampling allows."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from unlabeled.data.mask import Mask

DRAWS = 2000
LIMIT = 4.5  # standard errors
LARGEST = 2.47  # Kolmogorov's and Smirnov's distance times the root of n, which chance exceeds once in 10^5


def draws(mask: Mask, grid: tuple[int, int], patch: int) -> Tensor:
    """[DRAWS, rows, columns] bool."""
    rng = np.random.default_rng(0)
    return torch.stack([mask.draw(rng, grid, patch).hidden.view(grid) for _ in range(DRAWS)])


def assert_same_mean(mine: Tensor, mean: float, error: float, what: str) -> None:
    """Our sample's mean, and an official one of known standard error."""
    both = math.hypot(mine.std().item() / math.sqrt(len(mine)), error)
    assert abs(mine.mean().item() - mean) <= LIMIT * both + 1e-6, f"{what}: {mine.mean():.4g}, official {mean:.4g}"


def assert_same_spread(mine: Tensor, deviation: float, what: str) -> None:
    """Our sample's standard deviation, and an official one of as many draws."""
    squares = (mine - mine.mean()).square()
    allowed = LIMIT * math.sqrt(2 / len(mine)) * squares.std().item() + 1e-12
    assert abs(squares.mean().item() - deviation**2) <= allowed, f"{what}: {mine.std():.4g}, official {deviation:.4g}"


def assert_same_distribution(mine: Tensor, official: Tensor, what: str) -> None:
    """Kolmogorov's and Smirnov's distance between two samples, and their means."""
    values = torch.cat([mine, official]).unique()
    below = [(sample.sort().values.unsqueeze(0) <= values.unsqueeze(1)).double().mean(1) for sample in (mine, official)]
    n = len(mine) * len(official) / (len(mine) + len(official))
    assert (below[0] - below[1]).abs().max() < LARGEST / math.sqrt(n), f"{what} is distributed otherwise"
    assert_same_mean(mine, official.mean().item(), official.std().item() / math.sqrt(len(official)), what)


def assert_same_quantiles(mine: Tensor, official: Tensor, levels: Tensor, n: int, what: str) -> None:
    """Official quantiles of n draws are quantiles of ours too."""
    allowed = LARGEST / math.sqrt(len(mine) * n / (len(mine) + n))
    for value, level in zip(official.tolist(), levels.tolist(), strict=True):
        least = (mine < value - 1e-9).double().mean().item() - allowed
        most = (mine <= value + 1e-9).double().mean().item() + allowed
        assert least <= level <= most, f"{what}: official quantile {level:g} is {value:.4g}"


def assert_same_frequency(mine: Tensor, official: Tensor, n: int) -> None:
    """Two frequencies per cell, ours over DRAWS, theirs over n."""
    both = (mine * DRAWS + official * n) / (DRAWS + n)
    error = (both * (1 - both) * (1 / DRAWS + 1 / n)).sqrt().clamp_min(1 / DRAWS)
    assert ((mine - official).abs() / error).max() < LIMIT
