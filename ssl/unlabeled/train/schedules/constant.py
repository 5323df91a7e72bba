"""Linear warm-up, then level."""

from __future__ import annotations

from typing import ClassVar, Literal

from unlabeled.pretrain.method import Progress
from unlabeled.train.schedule import Ramp, Schedule, level


class Config(Schedule, frozen=True, extra="forbid"):
    """Linear warm-up, then level to the end, which may be put off (`--extend`). Ignores the minimum."""

    ends: ClassVar[bool] = False
    falls: ClassVar[bool] = False
    name: Literal["constant"] = "constant"

    def at(self, progress: Progress, ramp: Ramp) -> float:
        return level(progress, ramp)
