"""Multinomial logistic regression on frozen features, solved to its optimum; held-out pictures choose its strength."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, ClassVar, NamedTuple

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from unlabeled.evaluate.features import Features
from unlabeled.evaluate.protocol import Pooled, Score
from unlabeled.evaluate.protocols.knn import accuracy
from unlabeled.evaluate.protocols.linear import hold_out, standardize
from unlabeled.progress import task

if TYPE_CHECKING:
    from unlabeled.evaluate.bench import Bench

HISTORY = 10  # steps that L-BFGS remembers
Strength = Annotated[float, Field(gt=0, allow_inf_nan=False)]
log = logging.getLogger(__name__)


class Logistic(Pooled, frozen=True, extra="forbid"):
    """Softmax regression on standardised features: mean cross-entropy + l2 / 2 |weight|^2, the bias is free.

    Solved by L-BFGS over all samples at once. In scikit-learn's terms l2 is 1 / (C n).
    """

    protocol: ClassVar[str] = "logistic"
    version: ClassVar[str] = "logistic/1"
    few_labels: ClassVar[bool] = True

    l2: tuple[Strength, ...] = Field(
        (1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0),
        min_length=1,
        description="strengths of the penalty to try; a held-out tenth of the training pictures decides",
    )
    max_iterations: int = Field(500, ge=1, description="of L-BFGS, for each strength")
    tolerance: float = Field(1e-5, gt=0, allow_inf_nan=False, description="largest slope at which it is solved")

    def scores(self, bench: Bench) -> Iterator[Score]:
        train, test = bench.features(self.pool, self.blocks)
        hits, l2 = logistic_probe(train, test, bench.num_classes, self, bench.seed)
        yield Score("logistic", accuracy(hits), 100.0 * hits.cpu().numpy(), {"l2": l2})


class Regression(NamedTuple):
    """One classifier, or a batch of them.

    Attributes:
        weight: [..., D, C].
        bias: [..., C].
    """

    weight: Tensor
    bias: Tensor

    def logits(self, x: Tensor) -> Tensor:
        """Features [..., n, D] to logits [..., n, C]."""
        return x @ self.weight + self.bias.unsqueeze(-2)


class Fit(NamedTuple):
    """A regression and the largest slope of the loss where the solver stopped."""

    regression: Regression
    slope: float


def logistic_probe(
    train: Features, test: Features, num_classes: int, config: Logistic, seed: int = 0
) -> tuple[Tensor, float]:
    """(which test pictures are classified right [n], the strength that was chosen); held out as in the linear probe.

    Ties go to the larger strength.
    """
    train, test = (Features(split.x.to(_precise(split.x)), split.y) for split in standardize(train, test))
    # each solution is a good start for the next weaker penalty
    strengths, right = sorted(config.l2, reverse=True), np.zeros(len(config.l2))
    if len(strengths) > 1:
        for held, kept in hold_out(train.y.cpu().numpy(), seed):
            some, others, found = train.take(kept), train.take(held), None
            for place, l2 in enumerate(strengths):
                found = fit(some.x, some.y, num_classes, l2, config, found and found.regression)
                right[place] += _hits(found.regression, others).sum().item()
    l2 = strengths[int(right.argmax())]
    found = fit(train.x, train.y, num_classes, l2, config)
    if found.slope > config.tolerance:
        log.warning(
            "logistic regression stopped after %d iterations at a slope of %.1e, tolerance %.1e: raise max_iterations",
            config.max_iterations,
            found.slope,
            config.tolerance,
        )
    return _hits(found.regression, test), l2


@torch.no_grad()
def fit(x: Tensor, y: Tensor, num_classes: int, l2: float, config: Logistic, start: Regression | None = None) -> Fit:
    """Minimise the mean cross-entropy + l2 / 2 |weight|^2 by L-BFGS with a line search (strong Wolfe conditions).

    Problems of a batch are independent, and solved as one: the minimum of a sum of theirs.

    Args:
        x: [..., n, D] features, float64 where the device has it.
        y: [..., n] labels.
        num_classes: C.
        l2: strength of the penalty; the bias has none.
        config: tolerance and iterations.
        start: where to begin; None = at zero.
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
        max_iter=config.max_iterations,
        tolerance_grad=config.tolerance,
        tolerance_change=0,
        history_size=HISTORY,
        line_search_fn="strong_wolfe",
    )
    shown = task("logistic regression, at most", optimizer.defaults["max_eval"])
    optimizer.step(closure)
    closure()
    shown.close()
    slopes = [tensor.grad.abs().max().item() for tensor in regression if tensor.grad is not None]
    return Fit(Regression(*(tensor.detach() for tensor in regression)), max(slopes))


def _precise(x: Tensor) -> torch.dtype:
    """Line searches near the optimum compare losses that float32 cannot tell apart; Apple's GPUs have nothing else."""
    return torch.float32 if x.device.type == "mps" else torch.float64


def _hits(regression: Regression, test: Features) -> Tensor:
    return regression.logits(test.x).argmax(-1) == test.y
