"""Gradual unfreezing: one layer after another from the top."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from unlabeled.transfer.strategy import ByDepth


class Config(ByDepth, frozen=True, extra="forbid"):
    """Unfreeze one layer after another; the head and the top layer learn from the start (Howard and Ruder 2018)."""

    name: Literal["gradual"] = "gradual"
    unfreeze_every: float = Field(1.0, gt=0, allow_inf_nan=False, description="epochs between unfreezing two layers")

    def starts(self, below: int) -> float:
        return below * self.unfreeze_every

    def plan(self, layers: int, epochs: float) -> str:
        text = f"{layers + 1} layers from the top, one every {self.unfreeze_every:g} epochs"
        never = sum(self.starts(below) >= epochs for below in range(1, layers + 1))
        if never:
            text += f": {never} never learn in {epochs:g} epochs. task.strategy.unfreeze_every below "
            text += f"{epochs / layers:.3g} unfreezes all"
        return text
