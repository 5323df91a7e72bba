"""Sharpened probabilities of two weak views (MixMatch, Berthelot et al. 2019)."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field
from torch import Tensor

from unlabeled.transfer.target import Target


class Config(Target, frozen=True, extra="forbid"):
    """Squared distance to p^(1 / T), divided by its sum, of the mean p of two weak views; the mean over classes
    (equations 7 and 4)."""

    views: ClassVar[int] = 2
    name: Literal["sharp"] = "sharp"
    temperature: float = Field(0.5, gt=0, le=1, description="T: 1 = probabilities as they are, towards 0 = one class")

    def sharpened(self, p: Tensor) -> Tensor:
        """Probabilities p [U, C] with most of them on the likeliest classes."""
        return (p.log() / self.temperature).softmax(-1)

    def distance(self, strong: Tensor, p: Tensor) -> Tensor:
        return (strong.softmax(-1) - self.sharpened(p)).square().mean(-1)
