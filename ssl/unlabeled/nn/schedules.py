"""Schedules of momenta and temperatures: from one value to another as `done` goes from 0 to 1."""

from __future__ import annotations

import math


def cosine(start: float, end: float, done: float) -> float:
    """Half a cosine: `start` at done = 0, `end` at done = 1 (EMA momenta of MoCo v3, DINO, iBOT)."""
    return end + (start - end) * 0.5 * (1 + math.cos(math.pi * done))


def warmup(start: float, end: float, done: float) -> float:
    """A straight line from `start` at done = 0 to `end` at done = 1, level outside of it (teacher temperatures)."""
    return start + (end - start) * min(max(done, 0.0), 1.0)
