"""Stochastic gradient descent."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor
from torch.optim import Optimizer

from unlabeled.train.optimizer import Groups, Optim, Unit, unless


class Config(Optim, frozen=True, extra="forbid"):
    """Stochastic gradient descent with momentum."""

    copies: ClassVar[int] = 1
    gentle: ClassVar[float | None] = 1e-2
    name: Literal["sgd"] = "sgd"
    momentum: Unit = Field(0.9, description="of the velocity")

    def build(self, groups: Groups) -> Optimizer:
        on_cpu = all(p.device.type == "cpu" for group in groups for p in group["params"])
        # torch's is faster, but the host must know whether a step is skipped: on a CPU it does
        return (torch.optim.SGD if on_cpu else SGD)(groups, lr=0.0, momentum=self.momentum)


class SGD(Optimizer):
    """torch's SGD, number for number, that obeys `found_inf`.

    torch's fused one does too, but not where only some of the parameters have begun to learn.
    """

    _step_supports_amp_scaling = True

    def __init__(self, params: Iterable[Any], lr: float, momentum: float = 0.0, weight_decay: float = 0.0) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """One update: v <- momentum v + gradient; p <- p - lr v. Nothing changes where `found_inf` is not 0."""
        found_inf = getattr(self, "found_inf", None)
        loss = closure() if closure is not None else None
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    update = p.grad.add(p, alpha=group["weight_decay"]) if group["weight_decay"] else p.grad
                    if group["momentum"]:
                        update = self._velocity(p, update, group["momentum"])
                    p.add_(unless(found_inf, 0.0, update), alpha=-group["lr"])
        return loss

    def _velocity(self, p: Tensor, update: Tensor, momentum: float) -> Tensor:
        state = self.state[p]
        if "momentum_buffer" not in state:
            state["momentum_buffer"] = update.clone()
            return state["momentum_buffer"]
        velocity = state["momentum_buffer"]
        found_inf = getattr(self, "found_inf", None)
        return velocity.copy_(unless(found_inf, velocity, velocity.mul(momentum).add_(update)))
