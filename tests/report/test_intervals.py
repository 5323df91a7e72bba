"""Intervals against loops over the definition, and against printed tables of t."""

from __future__ import annotations

import math

import numpy as np
import pytest

from unlabeled.report import intervals
from unlabeled.report.intervals import bootstrap, estimate, repeated, student, t_quantile


@pytest.mark.parametrize("drawn_at_once", [10, 1 << 22])
@pytest.mark.parametrize("level", [0.95, 0.5])
def test_bootstrap_against_a_loop(monkeypatch: pytest.MonkeyPatch, drawn_at_once: int, level: float) -> None:
    monkeypatch.setattr(intervals, "DRAWN_AT_ONCE", drawn_at_once)
    values = np.random.default_rng(3).random(37)
    generator = np.random.Generator(np.random.Philox(5))
    means = sorted(sum(values[generator.integers(37)] for _ in range(37)) / 37 for _ in range(201))
    tail = round((1 - level) / 2 * 200)
    assert bootstrap(values, 201, 5, level) == pytest.approx((means[tail], means[200 - tail]))


def test_bootstrap_of_shares_is_nearly_normal() -> None:
    """10,000 pictures, 30 % correct: 0.3 -+ 1.96 sqrt(0.3 0.7 / 10,000)."""
    correct = np.arange(10_000) < 3_000
    assert bootstrap(correct, draws=4000) == pytest.approx((0.29102, 0.30898), abs=4e-4)
    assert bootstrap(correct) == bootstrap(correct) != bootstrap(correct, seed=1)


def test_bootstrap_of_what_never_varies() -> None:
    assert bootstrap(np.ones(5)) == (1, 1)
    with pytest.raises(ValueError, match=r"found shape \(0,\)"):
        bootstrap(np.ones(0))


# Abramowitz and Stegun 1964, table 26.10
PRINTED = {
    (0.95, 1): 12.706,
    (0.95, 2): 4.303,
    (0.95, 3): 3.182,
    (0.95, 4): 2.776,
    (0.95, 9): 2.262,
    (0.95, 30): 2.042,
    (0.95, 120): 1.980,
    (0.9, 5): 2.015,
    (0.9, 20): 1.725,
    (0.99, 1): 63.657,
    (0.99, 10): 3.169,
    (0.99, 60): 2.660,
}


@pytest.mark.parametrize("level, freedom", PRINTED)
def test_quantiles_of_t_as_printed(level: float, freedom: int) -> None:
    assert t_quantile(level, freedom) == pytest.approx(PRINTED[level, freedom], abs=5.1e-4)


def test_many_degrees_of_freedom_are_nearly_normal() -> None:
    assert t_quantile(0.95, 9_999) == pytest.approx(1.95996, abs=3e-4)


def test_student_by_hand() -> None:
    """Of 1, 2, 3, 4: s = sqrt(5 / 3), three degrees of freedom."""
    assert student([1, 2, 3, 4]) == pytest.approx(3.18245 * math.sqrt(5 / 3) / 2, rel=1e-5)
    assert student([7.0, 7.0]) == 0
    with pytest.raises(ValueError, match="at least two"):
        student([7.0])


def test_estimates_as_text() -> None:
    assert estimate(91.234) == "91.23"
    assert estimate(91.25, 0.5, (90, 92.44), digits=1) == "91.2 ± 0.5 [90.0, 92.4]"
    assert repeated([7.0]) == "7.00"
    # s = 1, t = 4.303 with two degrees of freedom, 4.303 / sqrt(3) = 2.484
    assert repeated([1, 2, 3]) == "2.00 ± 1.00 [-0.48, 4.48]"
