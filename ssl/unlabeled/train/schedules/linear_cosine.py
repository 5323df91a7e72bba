"""Linear warm-up, then half a cosine that reaches the minimum, and stays there."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from unlabeled.nn.curves import cosine
from unlabeled.pretrain.method import Progress
from unlabeled.train.schedule import Ramp, Schedule


class Config(Schedule, frozen=True, extra="forbid"):
    """Linear warm-up, then half a cosine down to the minimum on its last step, then level (DINOv3's
    `linear_warmup_cosine_decay`)."""

    name: Literal["linear_cosine"] = "linear_cosine"
    length: float | None = Field(None, gt=0, description="of the cosine, epochs; null = to the end of the run")

    def at(self, progress: Progress, ramp: Ramp) -> float:
        warm = progress.steps(ramp.warmup)
        if progress.step < warm:
            return ramp.warming(progress.step, warm)
        steps = progress.total_steps - warm if self.length is None else progress.steps(self.length)
        return cosine(ramp.peak, ramp.minimum, min(1.0, (progress.step - warm) / max(1, steps - 1)))
