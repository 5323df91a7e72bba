"""Learning without forgetting (Li & Hoiem 2017)."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field
from torch import Tensor

from unlabeled.incremental.losses import classification, distillation
from unlabeled.incremental.strategy import Coming, Kept, Seen, Strategy


class Config(Strategy, frozen=True, extra="forbid"):
    """Learn the new classes, and answer for the old ones as the network before does on the same crops.

    With weight 0 it is plain fine-tuning, the lower bound of all strategies.
    """

    teacher: ClassVar[bool] = True
    name: Literal["lwf"] = "lwf"

    weight: float = Field(3.0, ge=0, allow_inf_nan=False, description="of the distillation; 0 = plain fine-tuning")
    temperature: float = Field(
        2.0, gt=0, allow_inf_nan=False, description="that divides the logits in the distillation"
    )

    def loss(self, now: Seen, before: Seen | None, labels: Tensor, task: Coming, kept: Kept) -> dict[str, Tensor]:
        terms = {"classification": classification(now.logits, labels, task)}
        if before is not None and self.weight:
            terms["distillation"] = self.weight * distillation(now.logits, before.logits, self.temperature)
        return terms
