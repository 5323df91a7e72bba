"""Stochastic gradient descent."""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from pydantic import Field

from unlabeled.train.optimizer import Groups, Optim, Unit


class Config(Optim, frozen=True, extra="forbid"):
    """Stochastic gradient descent with momentum."""

    copies: ClassVar[int] = 1
    gentle: ClassVar[float | None] = 1e-2
    name: Literal["sgd"] = "sgd"
    momentum: Unit = Field(0.9, description="of the velocity")

    def build(self, groups: Groups) -> torch.optim.Optimizer:
        return torch.optim.SGD(groups, lr=0.0, momentum=self.momentum)
