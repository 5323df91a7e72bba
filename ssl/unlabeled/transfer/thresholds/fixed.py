"""One threshold for all classes and all of the run (FixMatch, Sohn et al. 2020)."""

from __future__ import annotations

from typing import Literal

from pydantic import Field
from torch import Tensor

from unlabeled.transfer.threshold import Gate, Threshold


class Config(Threshold, frozen=True, extra="forbid"):
    """Learn from images whose largest probability is at least so much."""

    name: Literal["fixed"] = "fixed"
    cutoff: float = Field(0.95, ge=0, le=1, description="least probability of the likeliest class; 0 = all pass")

    def build(self, classes: int) -> Gate:
        return Fixed(self.cutoff)

    def when_none_pass(self) -> str:
        lower = round(self.cutoff - 0.15, 2) if self.cutoff > 0.5 else self.cutoff / 2
        return f"Lower task.unlabelled.threshold.cutoff from {self.cutoff:g} to {lower:g}, or set its name to adaptive."

    def when_one_class(self) -> str:
        return "Set task.unlabelled.threshold.name=adaptive, which evens them out, or lower optim.base_lr to a third."


class Fixed(Gate):
    """See `Config`."""

    def __init__(self, cutoff: float) -> None:
        super().__init__()
        self.cutoff = cutoff

    def forward(self, p: Tensor) -> Tensor:
        return p.amax(-1) >= self.cutoff
