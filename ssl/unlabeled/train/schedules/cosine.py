"""Linear warm-up, then half a cosine, both of the fractional epoch."""

from __future__ import annotations

import math
from typing import Literal

from pydantic import Field

from unlabeled.nn.curves import cosine
from unlabeled.pretrain.method import Progress
from unlabeled.train.schedule import Ramp, Schedule


class Config(Schedule, frozen=True, extra="forbid"):
    """Linear warm-up, then half a cosine, both of the fractional epoch (MAE's `util/lr_sched.py`; MoCo v3)."""

    name: Literal["cosine"] = "cosine"
    per_epoch: bool = Field(
        False, description="changes at the beginning of an epoch only (probes of MoCo v3, DINO, iBOT)"
    )

    def at(self, progress: Progress, ramp: Ramp) -> float:
        epoch, epochs, warmup = progress.epoch, progress.epochs, ramp.warmup
        if self.per_epoch:
            # the fractional epoch of a step is a quotient, rounded: a whole one may lie just below
            epoch = math.floor(epoch + 1e-6)
        if epoch < warmup:
            return ramp.warming(epoch, warmup)
        if epochs <= warmup:
            return ramp.peak
        return cosine(ramp.peak, ramp.minimum, (epoch - warmup) / (epochs - warmup))
