"""A warm-up and a cosine of the number of the step, as I-JEPA counts them."""

from __future__ import annotations

from typing import ClassVar, Literal

from unlabeled.nn.curves import cosine
from unlabeled.pretrain.method import Progress
from unlabeled.train.schedule import Ramp, Schedule


class Config(Schedule, frozen=True, extra="forbid"):
    """Linear warm-up, then half a cosine, of steps counted from 1, so that the last one has the minimum; weight decay
    is counted alike (official `WarmupCosineSchedule` and `CosineWDSchedule` of I-JEPA and MSN)."""

    name: Literal["step_cosine"] = "step_cosine"
    first: ClassVar[int] = 1

    def at(self, progress: Progress, ramp: Ramp) -> float:
        step, warm = progress.step + self.first, progress.steps(ramp.warmup)
        if step < warm:
            return ramp.warming(step, warm)
        return cosine(ramp.peak, ramp.minimum, (step - warm) / max(1, progress.total_steps - warm))
