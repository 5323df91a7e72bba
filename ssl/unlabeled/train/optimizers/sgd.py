"""Stochastic gradient descent."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor
from torch.optim import Optimizer

from unlabeled.train.optimizer import Groups, Optim, Skipping, Unit


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


class SGD(Skipping):
    """torch's SGD, number for number, that obeys `found_inf`: v <- momentum v + gradient; p <- p - lr v.

    torch's fused one does too, but not where only some of the parameters have begun to learn.
    """

    def __init__(self, params: Iterable[Any], lr: float, momentum: float = 0.0, weight_decay: float = 0.0) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    def update_(self, parameters: list[Tensor], gradients: list[Tensor], group: dict[str, Any]) -> None:
        updates = gradients
        if group["weight_decay"]:
            updates = list(torch._foreach_add(gradients, parameters, alpha=group["weight_decay"]))
        if group["momentum"]:
            updates = self._velocities(parameters, updates, group["momentum"])
        updates = self.unless_skipped([0.0] * len(updates), updates)
        torch._foreach_add_(parameters, updates, alpha=-group["lr"])

    def _velocities(self, parameters: list[Tensor], updates: list[Tensor], momentum: float) -> list[Tensor]:
        states, known = [self.state[parameter] for parameter in parameters], list[tuple[Tensor, Tensor]]()
        for state, update in zip(states, updates, strict=True):
            if "momentum_buffer" in state:
                known.append((state["momentum_buffer"], update))
            else:
                state["momentum_buffer"] = update.clone()
        if known:
            velocities, given = map(list, zip(*known, strict=True))
            moved = torch._foreach_mul(velocities, momentum)
            torch._foreach_add_(moved, given)
            torch._foreach_copy_(velocities, self.unless_skipped(velocities, moved))
        return [state["momentum_buffer"] for state in states]
