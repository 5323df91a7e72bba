"""Schedules: pure functions of progress, written into the param groups every step."""

from __future__ import annotations

import math

REFERENCE_BATCH = 256


def peak_lr(base: float, batch_size: int) -> float:
    """The linear scaling rule: base x effective batch / 256 (Goyal et al. 2017)."""
    return base * batch_size / REFERENCE_BATCH


def warmup_cosine(epoch: float, *, peak: float, minimum: float, warmup: float, epochs: float) -> float:
    """Linear from 0 over `warmup` epochs, then half a cosine from `peak` to `minimum` (MAE's `util/lr_sched.py`).

    Args:
        epoch: fractional epochs done, in [0, epochs].
        peak, minimum: learning rates; the warm-up starts at 0 and ignores the minimum.
        warmup, epochs: lengths in epochs.
    """
    if epoch < warmup:
        return peak * epoch / warmup
    if epochs <= warmup:
        return peak
    return minimum + (peak - minimum) * 0.5 * (1 + math.cos(math.pi * (epoch - warmup) / (epochs - warmup)))
