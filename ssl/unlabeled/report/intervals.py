"""Errors of a mean, as numbers and as text: over images by the bootstrap, over seeds or episodes by Student's t."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

DRAWN_AT_ONCE = 1 << 22


def bootstrap(values: np.ndarray, draws: int = 1000, seed: int = 0, level: float = 0.95) -> tuple[float, float]:
    """Percentile interval of the mean over images (Efron 1979), the same for the same values and seed.

    Args:
        values: [n], a score per image, such as 1 for a correct prediction and 0 for a wrong one.
        draws: number of samples of n images, with replacement.
        seed: of the draws.
        level: share of the samples' means within the interval.

    Returns:
        (low, high), in the unit of the values.

    Raises:
        ValueError: there is no value.
    """
    values = np.asarray(values, dtype=np.float64)
    if values.ndim != 1 or not len(values):
        raise ValueError(f"expected one score for each of at least one picture, found shape {values.shape}")
    n, generator = len(values), np.random.Generator(np.random.Philox(seed))
    rows = max(1, DRAWN_AT_ONCE // n)  # drawn in parts, to save memory
    sizes = [min(rows, draws - start) for start in range(0, draws, rows)]
    means = np.concatenate([values[generator.integers(n, size=(size, n))].mean(axis=1) for size in sizes])
    return percentiles(means, level)


def resampled(n: int, draws: int = 1000, seed: int = 0, at_once: int = DRAWN_AT_ONCE) -> Iterator[NDArray[np.float64]]:
    """How often each of n images is in a sample of n with replacement, sample by sample: parts [R, n] of [draws, n].

    For measures that are no mean over images (Efron 1979). A part has about `at_once` numbers.
    """
    generator, rows = np.random.Generator(np.random.Philox(seed)), max(1, at_once // n)
    for start in range(0, draws, rows):
        size = min(rows, draws - start)
        places = generator.integers(n, size=(size, n)) + n * np.arange(size)[:, None]
        yield np.bincount(places.ravel(), minlength=size * n).reshape(size, n).astype(np.float64)


def percentiles(values: np.ndarray, level: float = 0.95) -> tuple[float, float]:
    """The bounds (low, high) of the middle share `level` of values; those that are NaN are left out."""
    low, high = np.nanquantile(values, ((1 - level) / 2, (1 + level) / 2))
    return float(low), float(high)


def student(values: Sequence[float], level: float = 0.95) -> float:
    """Half the width of Student's interval of a mean: t s / sqrt(n), n - 1 degrees of freedom.

    Args:
        values: at least two, independent and about normal, such as accuracies over seeds or episodes.
        level: probability that the interval holds the true mean.

    Raises:
        ValueError: fewer than two values.
    """
    return t_quantile(level, len(values) - 1) * statistics.stdev(values) / math.sqrt(len(values))


def t_quantile(level: float, freedom: int) -> float:
    """The t with P(|T| < t) = level, for a whole number of degrees of freedom."""
    low, high = 0.0, math.pi / 2
    for _ in range(60):  # halvings: beyond a float's precision
        middle = (low + high) / 2
        low, high = (middle, high) if _within(middle, freedom) < level else (low, middle)
    return math.sqrt(freedom) * math.tan(low)


def _within(angle: float, freedom: int) -> float:
    """P(|T| < sqrt(freedom) tan(angle)) (Abramowitz and Stegun 1964, 26.7.3 and 26.7.4)."""
    odd, cosine = freedom % 2, math.cos(angle)
    term = cosine if odd else 1.0
    total = term if freedom > 1 else 0.0
    for k in range(2 + odd, freedom - 1, 2):
        term *= (k - 1) / k * cosine**2
        total += term
    total *= math.sin(angle)
    return 2 / math.pi * (angle + total) if odd else total


def estimate(
    mean: float, deviation: float | None = None, interval: tuple[float, float] | None = None, digits: int = 2
) -> str:
    """A number with its error: `91.20 ± 0.31 [90.84, 91.56]`."""
    spread = "" if deviation is None else f" ± {deviation:.{digits}f}"
    bounds = "" if interval is None else f" [{interval[0]:.{digits}f}, {interval[1]:.{digits}f}]"
    return f"{mean:.{digits}f}{spread}{bounds}"


def repeated(values: Sequence[float], digits: int = 2, level: float = 0.95) -> str:
    """Mean, standard deviation and Student's interval over seeds or episodes; a single value stays alone."""
    mean = statistics.mean(values)
    if len(values) == 1:
        return estimate(mean, digits=digits)
    half = student(values, level)
    return estimate(mean, statistics.stdev(values), (mean - half, mean + half), digits)
