"""Layer-wise adaptation of Adam for large batches (You et al. 2020)."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor
from torch.optim import Optimizer

from unlabeled.train.optimizer import Groups, Optim, Skipping, Unit


class Config(Optim, frozen=True, extra="forbid"):
    """LAMB, for CNNs at large batch (SparK), as timm implements it."""

    name: Literal["lamb"] = "lamb"
    betas: tuple[Unit, Unit] = Field((0.9, 0.95), description="decay of the two moments")
    eps: float = Field(1e-6, gt=0, allow_inf_nan=False, description="added to the root of the second moment")
    clip: float | None = Field(
        5.0, gt=0, allow_inf_nan=False, description="largest gradient norm, of all gradients together; null = none"
    )

    def build(self, groups: Groups) -> Optimizer:
        return LAMB(groups, lr=0.0, betas=self.betas, eps=self.eps)


class LAMB(Skipping):
    """timm's LAMB, but that it obeys `found_inf`: Adam's update, weight decay included, as long as the tensor itself.

    u <- m / (sqrt(v) + eps) + decay p, of corrected moments m and v; p <- p - lr |p| / |u| u. Tensors without weight
    decay take Adam's step. Gradients are clipped before, see `optim.clip`.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float,
        betas: tuple[float, float] = (0.9, 0.95),
        eps: float = 1e-6,
        weight_decay: float = 0.0,
    ) -> None:
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay})

    def update_(self, parameters: list[Tensor], gradients: list[Tensor], group: dict[str, Any]) -> None:
        updates = self._adam(parameters, gradients, group)
        if group["weight_decay"]:
            torch._foreach_add_(updates, parameters, alpha=group["weight_decay"])
            lengths, norms = (torch.stack(torch._foreach_norm(side)) for side in (parameters, updates))
            ratios = torch.where((lengths > 0) & (norms > 0), lengths / norms, 1.0)
            torch._foreach_mul_(updates, ratios.unbind())
        updates = self.unless_skipped([0.0] * len(updates), updates)
        torch._foreach_add_(parameters, updates, alpha=-group["lr"])

    def _adam(self, parameters: list[Tensor], gradients: list[Tensor], group: dict[str, Any]) -> list[Tensor]:
        """The corrected first moments over the roots of the second."""
        first, second = group["betas"]
        for parameter in parameters:
            if not (state := self.state[parameter]):
                state["step"] = torch.zeros((), device=parameter.device)
                state["exp_avg"], state["exp_avg_sq"] = torch.zeros_like(parameter), torch.zeros_like(parameter)
        states = [self.state[parameter] for parameter in parameters]
        steps, means, squares = ([state[key] for state in states] for key in ("step", "exp_avg", "exp_avg_sq"))

        grown = torch._foreach_mul(squares, second)
        torch._foreach_addcmul_(grown, gradients, gradients, 1 - second)
        torch._foreach_copy_(squares, self.unless_skipped(squares, grown))
        torch._foreach_copy_(means, self.unless_skipped(means, torch._foreach_lerp(means, gradients, 1 - first)))
        torch._foreach_copy_(steps, self.unless_skipped(steps, torch._foreach_add(steps, 1)))

        of_means, of_squares = (_correction(torch.stack(steps), beta).unbind() for beta in group["betas"])
        roots = torch._foreach_div(squares, of_squares)
        torch._foreach_sqrt_(roots)
        torch._foreach_add_(roots, group["eps"])
        updates = list(torch._foreach_div(means, of_means))
        torch._foreach_div_(updates, roots)
        return updates


def _correction(steps: Tensor, beta: float) -> Tensor:
    """1 - beta^steps, exact also where beta is near 1."""
    return -torch.expm1(steps * math.log(beta)) if beta else torch.ones_like(steps)
