"""The learning rates of DINO's table, one a step."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from unlabeled.nn.curves import cosine
from unlabeled.pretrain.method import Progress
from unlabeled.train.schedule import Ramp, Schedule


class Config(Schedule, frozen=True, extra="forbid"):
    """A warm-up of evenly spaced values that reaches its peak on its last step, then half a cosine that starts there
    again (DINO's `utils.cosine_scheduler`; iBOT, DINOv2; DINOv3's `CosineScheduler` has the two fields)."""

    name: Literal["table"] = "table"
    still: float = Field(0.0, ge=0, allow_inf_nan=False, description="epochs at 0 before the warm-up")
    cut: float = Field(
        0.0,
        ge=0,
        le=10,
        description="share by which the cosine would be longer: it is cut off while it falls, and ends at the minimum "
        "(DINOv3's trunc_extra)",
    )

    def at(self, progress: Progress, ramp: Ramp) -> float:
        still, warm = progress.steps(self.still), progress.steps(ramp.warmup)
        step, length = progress.step - still, progress.total_steps - still - warm
        if step < 0:
            return 0.0
        if step < warm:
            return ramp.warming(step, max(1, warm - 1))
        if not self.cut:
            return cosine(ramp.peak, ramp.minimum, (step - warm) / max(1, length))
        last = max(1, int((1 + self.cut) * length) - 1)
        here, lowest = (cosine(1.0, 0.0, at / last) for at in (step - warm, length - 1))
        return ramp.minimum + (ramp.peak - ramp.minimum) * (here - lowest) / max(1 - lowest, 1e-12)
