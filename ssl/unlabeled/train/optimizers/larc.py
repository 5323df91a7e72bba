"""LARS that adapts the rate of every tensor, its decay counted in (SwAV)."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor
from torch.optim import Optimizer

from unlabeled.train.optimizer import Groups, Optim, Unit
from unlabeled.train.optimizers.lars import LARS


class Config(Optim, frozen=True, extra="forbid"):
    """SGD under LARC, as SwAV uses it (NVIDIA apex's `LARC` with `clip=False`)."""

    copies: ClassVar[int] = 1
    name: Literal["larc"] = "larc"
    momentum: Unit = Field(0.9, description="of the velocity")
    trust: float = Field(0.001, gt=0, description="trust coefficient")
    eps: float = Field(1e-8, ge=0, allow_inf_nan=False, description="added to the norms in the denominator")

    def build(self, groups: Groups) -> Optimizer:
        return LARC([{**group, "eps": self.eps} for group in groups], lr=0.0, momentum=self.momentum, trust=self.trust)


class LARC(LARS):
    """SGD whose rate is, for every tensor, trust |p| / (|g| + decay |p| + eps) times the scheduled one.

    Where |p| or |g| is 0 the step is that of SGD without decay. timm's `Lars` with `always_adapt` is equal but for
    that, and does not know of steps to skip.
    """

    @staticmethod
    def _scaled(parameters: list[Tensor], gradients: list[Tensor], group: dict[str, Any]) -> list[Tensor]:
        decay, trust, eps = group["weight_decay"], group["trust"], group["eps"]
        p_norm, g_norm = (torch.stack(torch._foreach_norm(side)) for side in (parameters, gradients))
        adapts = (p_norm > 0) & (g_norm > 0)
        rates = torch.where(adapts, trust * p_norm / (g_norm + decay * p_norm + eps), 1.0)
        decayed = torch._foreach_add(gradients, torch._foreach_mul(parameters, (decay * adapts).unbind()))
        return list(torch._foreach_mul(decayed, rates.unbind()))
