"""timm's cosine schedule, as SimMIM runs it."""

from __future__ import annotations

from typing import Literal

from unlabeled.nn.curves import cosine
from unlabeled.pretrain.method import Progress
from unlabeled.train.schedule import Ramp, Schedule


class Config(Schedule, frozen=True, extra="forbid"):
    """A cosine that counts from step 0, so that it does not start at its peak, one step late (SimMIM with timm)."""

    name: Literal["timm_cosine"] = "timm_cosine"

    def at(self, progress: Progress, ramp: Ramp) -> float:
        late, warm = max(0, progress.step - 1), progress.steps(ramp.warmup)
        if late < warm:
            return ramp.warming(late, warm)
        return cosine(ramp.peak, ramp.minimum, late / progress.total_steps)
