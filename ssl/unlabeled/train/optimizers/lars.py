"""Layer-wise adaptive rate scaling (You et al. 2017)."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor
from torch.optim import Optimizer

from unlabeled.train.optimizer import Groups, Optim, Skipping, Unit


class Config(Optim, frozen=True, extra="forbid"):
    """LARS, for linear probes at large batch (MAE's `util/lars.py`)."""

    copies: ClassVar[int] = 1
    name: Literal["lars"] = "lars"
    momentum: Unit = Field(0.9, description="of the velocity")
    trust: float = Field(0.001, gt=0, description="trust coefficient")

    def build(self, groups: Groups) -> Optimizer:
        return LARS(groups, lr=0.0, momentum=self.momentum, trust=self.trust)


class LARS(Skipping):
    """Layer-wise adaptive rate scaling (You et al. 2017), as MAE and MoCo v3 implement it.

    Tensors of more than one axis get weight decay and the trust ratio; biases and norms are plain SGD:
    v <- momentum v + scaled gradient; p <- p - lr v.
    """

    def __init__(
        self, params: Iterable[Any], lr: float, momentum: float = 0.9, weight_decay: float = 0.0, trust: float = 0.001
    ) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay, "trust": trust})

    def update_(self, parameter: Tensor, gradient: Tensor, group: dict[str, Any]) -> None:
        state, update = self.state[parameter], self._scaled(parameter, gradient, group)
        if "momentum_buffer" not in state:
            state["momentum_buffer"] = torch.zeros_like(parameter)
        velocity = state["momentum_buffer"]
        velocity.copy_(self.unless_skipped(velocity, velocity.mul(group["momentum"]).add_(update)))
        parameter.sub_(self.unless_skipped(0.0, group["lr"] * velocity))

    @staticmethod
    def _scaled(p: Tensor, gradient: Tensor, group: dict[str, Any]) -> Tensor:
        if p.ndim < 2:
            return gradient
        gradient = gradient.add(p, alpha=group["weight_decay"])
        p_norm, g_norm = p.norm(), gradient.norm()
        both = (p_norm > 0) & (g_norm > 0)
        return gradient * torch.where(both, group["trust"] * p_norm / g_norm, 1.0)
