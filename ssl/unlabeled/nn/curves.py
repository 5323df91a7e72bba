"""Curves of momenta and temperatures from one value to another, as `done` goes from 0 to 1."""

from __future__ import annotations

import math
from typing import NamedTuple


def cosine(start: float, end: float, done: float) -> float:
    """Half a cosine: `start` at done = 0, `end` at done = 1 (EMA momenta of MoCo v3, DINO, iBOT)."""
    return end + (start - end) * 0.5 * (1 + math.cos(math.pi * done))


def warmup(start: float, end: float, done: float) -> float:
    """A straight line from `start` at done = 0 to `end` at done = 1, constant outside (teacher temperatures)."""
    return start + (end - start) * min(max(done, 0.0), 1.0)


class Temperature(NamedTuple):
    """A teacher temperature with a linear warm-up (DINO section 3.1, official `DINOLoss`)."""

    start: float
    end: float
    epochs: float  # of the warm-up
    per_step: bool = False  # whether it changes every step (DINOv2) instead of every epoch (DINO, iBOT)

    def at(self, epoch: float, steps_per_epoch: float) -> float:
        """The temperature at a fractional epoch. The warm-up includes both ends, as official `linspace`."""
        ticks = steps_per_epoch if self.per_step else 1
        # the fractional epoch of a step is a rounded quotient, which may lie just below a whole number
        tick, last = math.floor(epoch * ticks + 1e-6), self.epochs * ticks - 1
        if tick < 0:  # before the warm-up
            return self.start
        return self.end if tick > last else warmup(self.start, self.end, tick / max(last, 1))
