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

    def update_(self, parameters: list[Tensor], gradients: list[Tensor], group: dict[str, Any]) -> None:
        for parameter in parameters:
            if "momentum_buffer" not in (state := self.state[parameter]):
                state["momentum_buffer"] = torch.zeros_like(parameter)
        velocities = [self.state[parameter]["momentum_buffer"] for parameter in parameters]
        moved = torch._foreach_mul(velocities, group["momentum"])
        torch._foreach_add_(moved, self._scaled(parameters, gradients, group))
        torch._foreach_copy_(velocities, self.unless_skipped(velocities, moved))
        steps = torch._foreach_mul(velocities, group["lr"])
        torch._foreach_sub_(parameters, self.unless_skipped([0.0] * len(steps), steps))

    @staticmethod
    def _scaled(parameters: list[Tensor], gradients: list[Tensor], group: dict[str, Any]) -> list[Tensor]:
        places = [i for i, parameter in enumerate(parameters) if parameter.ndim > 1]
        if not places:
            return gradients
        weights, found = [parameters[i] for i in places], list(gradients)
        decayed = torch._foreach_add([gradients[i] for i in places], weights, alpha=group["weight_decay"])
        p_norm, g_norm = (torch.stack(torch._foreach_norm(side)) for side in (weights, decayed))
        ratios = torch.where((p_norm > 0) & (g_norm > 0), group["trust"] * p_norm / g_norm, 1.0)
        for i, scaled in zip(places, torch._foreach_mul(decayed, ratios.unbind()), strict=True):
            found[i] = scaled
        return found
