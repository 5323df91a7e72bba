"""Linear warm-up, then level until a watched score stands still."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field

from unlabeled.pretrain.method import Progress
from unlabeled.train.schedule import Lowering, Ramp, Schedule, level


class Config(Schedule, frozen=True, extra="forbid"):
    """Linear warm-up, then level; lowered by a factor whenever the watched score (`watch`) has not improved for
    `patience` looks, down to the minimum."""

    ends: ClassVar[bool] = False
    name: Literal["plateau"] = "plateau"
    factor: float = Field(0.1, gt=0, lt=1, description="on the learning rate where the score stands still")
    patience: int = Field(5, ge=1, description="looks without an improvement before that")

    def at(self, progress: Progress, ramp: Ramp) -> float:
        return level(progress, ramp)

    @property
    def lowering(self) -> Lowering:
        return Lowering(self.factor, self.patience)
