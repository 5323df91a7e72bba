"""Linear warm-up, then a factor at each milestone."""

from __future__ import annotations

from bisect import bisect_right
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from unlabeled.pretrain.method import Progress
from unlabeled.train.schedule import Ramp, Schedule


class Config(Schedule, frozen=True, extra="forbid"):
    """Linear warm-up, then a factor at each milestone, one step late (SimMIM's ViT recipe). Ignores the minimum."""

    ends: ClassVar[bool] = False
    falls: ClassVar[bool] = False
    name: Literal["steps"] = "steps"
    milestones: tuple[Annotated[float, Field(gt=0)], ...] = Field(min_length=1, description="epochs, ascending")
    factor: float = Field(0.1, gt=0, lt=1, description="on the learning rate at each milestone")

    @property
    def turns(self) -> tuple[float, ...]:
        return self.milestones

    def at(self, progress: Progress, ramp: Ramp) -> float:
        late, warm = max(0, progress.step - 1), progress.steps(ramp.warmup)
        if late < warm:
            return ramp.warming(late, warm)
        passed = bisect_right([progress.steps(milestone) for milestone in self.milestones], late)
        return ramp.peak * self.factor**passed
