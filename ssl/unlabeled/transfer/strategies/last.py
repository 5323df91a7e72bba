"""Fine-tuning of the last layers."""

from __future__ import annotations

import math
from typing import Literal

from pydantic import Field

from unlabeled.transfer.strategy import ByDepth


class Config(ByDepth, frozen=True, extra="forbid"):
    """Train the head and the last blocks of a ViT, or stages of a CNN; all below stays as it is."""

    name: Literal["last"] = "last"
    blocks: int = Field(1, ge=0, description="how many of the last blocks learn")

    def starts(self, below: int) -> float:
        return 0.0 if below <= self.blocks else math.inf

    def plan(self, layers: int, epochs: float) -> str:
        return f"the last {min(self.blocks, layers)} of {layers} layers below the head, the others never"
