"""Layer-wise adaptive rate scaling (You et al. 2017)."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor
from torch.optim import Optimizer

from unlabeled.train.optimizer import Groups, Optim, Unit, unless


class Config(Optim, frozen=True, extra="forbid"):
    """LARS, for linear probes at large batch (MAE's `util/lars.py`)."""

    copies: ClassVar[int] = 1
    name: Literal["lars"] = "lars"
    momentum: Unit = Field(0.9, description="of the velocity")
    trust: float = Field(0.001, gt=0, description="trust coefficient")

    def build(self, groups: Groups) -> Optimizer:
        return LARS(groups, lr=0.0, momentum=self.momentum, trust=self.trust)


class LARS(Optimizer):
    """Layer-wise adaptive rate scaling (You et al. 2017), as MAE and MoCo v3 implement it.

    Tensors of more than one axis get weight decay and the trust ratio; biases and norms are plain SGD.
    """

    _step_supports_amp_scaling = True

    def __init__(
        self, params: Iterable[Any], lr: float, momentum: float = 0.9, weight_decay: float = 0.0, trust: float = 0.001
    ) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay, "trust": trust})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """One update: v <- momentum v + scaled gradient; p <- p - lr v. Nothing changes where `found_inf` is not 0."""
        found_inf = getattr(self, "found_inf", None)
        loss = closure() if closure is not None else None
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    state = self.state[p]
                    update = self._scaled(p, p.grad, group)
                    if "momentum_buffer" not in state:
                        state["momentum_buffer"] = torch.zeros_like(p)
                    velocity = state["momentum_buffer"]
                    velocity.copy_(unless(found_inf, velocity, velocity.mul(group["momentum"]).add_(update)))
                    p.sub_(unless(found_inf, 0.0, group["lr"] * velocity))
        return loss

    @staticmethod
    def _scaled(p: Tensor, gradient: Tensor, group: dict[str, Any]) -> Tensor:
        if p.ndim < 2:
            return gradient
        gradient = gradient.add(p, alpha=group["weight_decay"])
        p_norm, g_norm = p.norm(), gradient.norm()
        both = (p_norm > 0) & (g_norm > 0)
        return gradient * torch.where(both, group["trust"] * p_norm / g_norm, 1.0)
