"""Multinomial logistic regression solved to its optimum by L-BFGS: one problem, or a batch of them as one."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from unlabeled.progress import task

MAX_ITERATIONS, TOLERANCE = 500, 1e-5


class Regression(NamedTuple):
    """One classifier, or a batch of them: weight [..., D, C], bias [..., C]."""

    weight: Tensor
    bias: Tensor

    def logits(self, x: Tensor) -> Tensor:
        """Features [..., n, D] to logits [..., n, C]."""
        return x @ self.weight + self.bias.unsqueeze(-2)


class Fit(NamedTuple):
    """A regression and the largest slope of the loss where the solver stopped."""

    regression: Regression
    slope: float


@torch.no_grad()
def fit(
    x: Tensor,
    y: Tensor,
    num_classes: int,
    l2: float,
    start: Regression | None = None,
    *,
    max_iterations: int = MAX_ITERATIONS,
    tolerance: float = TOLERANCE,
) -> Fit:
    """Minimise the mean cross-entropy + l2 / 2 |weight|^2 by L-BFGS with a line search (strong Wolfe conditions).

    Problems of a batch are independent, and solved as one: the minimum of the sum of their losses.

    Args:
        x: [..., n, D] features, float64 where the device has it.
        y: [..., n] labels below `num_classes`.
        l2: strength of the penalty; the bias has none.
        start: None = zeros.
        max_iterations: of L-BFGS.
        tolerance: largest slope at which a problem is solved.
    """
    shape = (*x.shape[:-2], x.shape[-1], num_classes)
    start = start or Regression(x.new_zeros(shape), x.new_zeros(*shape[:-2], num_classes))
    regression = Regression(*(tensor.clone() for tensor in start))
    target = torch.nn.functional.one_hot(y, num_classes).to(x.dtype)

    def closure() -> Tensor:
        logs = regression.logits(x).log_softmax(-1)
        error = (logs.exp() - target) / x.shape[-2]
        regression.weight.grad = x.mT @ error + l2 * regression.weight
        regression.bias.grad = error.sum(-2)
        shown.advance()
        return -(logs * target).sum() / x.shape[-2] + l2 / 2 * regression.weight.square().sum()

    optimizer = torch.optim.LBFGS(
        list(regression),
        max_iter=max_iterations,
        tolerance_grad=tolerance,
        tolerance_change=0,
        history_size=10,
        line_search_fn="strong_wolfe",
    )
    shown = task("logistic regression, at most", optimizer.defaults["max_eval"])
    optimizer.step(closure)
    closure()
    shown.close()
    slopes = [tensor.grad.abs().max().item() for tensor in regression if tensor.grad is not None]
    return Fit(Regression(*(tensor.detach() for tensor in regression)), max(slopes))
