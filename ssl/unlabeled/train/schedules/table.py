"""The learning rates of DINO's table, one a step."""

from __future__ import annotations

from typing import Literal

from unlabeled.nn.curves import cosine
from unlabeled.pretrain.method import Progress
from unlabeled.train.schedule import Ramp, Schedule


class Config(Schedule, frozen=True, extra="forbid"):
    """A warm-up of evenly spaced values that reaches its peak on its last step, then half a cosine that starts there
    again (DINO's `utils.cosine_scheduler`; iBOT, DINOv2)."""

    name: Literal["table"] = "table"

    def at(self, progress: Progress, ramp: Ramp) -> float:
        warm = progress.steps(ramp.warmup)
        if progress.step < warm:
            return ramp.warming(progress.step, max(1, warm - 1))
        return cosine(ramp.peak, ramp.minimum, (progress.step - warm) / max(1, progress.total_steps - warm))
