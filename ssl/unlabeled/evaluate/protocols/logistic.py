"""Multinomial logistic regression on frozen features, solved to its optimum; held-out images choose its penalty."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from unlabeled.evaluate.bench import Bench
from unlabeled.evaluate.features import Features
from unlabeled.evaluate.logistic_regression import MAX_ITERATIONS, TOLERANCE, Regression, fit
from unlabeled.evaluate.probing import accuracy, hold_out, standardize
from unlabeled.evaluate.protocol import Pooled, Score

Strength = Annotated[float, Field(gt=0, allow_inf_nan=False)]
log = logging.getLogger(__name__)


class Config(Pooled, frozen=True, extra="forbid"):
    """Softmax regression on standardised features: mean cross-entropy + l2 / 2 |weight|^2, the bias is free.

    Solved by L-BFGS over all samples at once. In scikit-learn's terms l2 is 1 / (C n).
    """

    version: ClassVar[str] = "logistic/1"
    summary: ClassVar[str] = "logistic regression solved to the end"
    order: ClassVar[int] = 3
    few_labels: ClassVar[bool] = True
    name: Literal["logistic"] = "logistic"

    l2: tuple[Strength, ...] = Field(
        (1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0),
        min_length=1,
        description="strengths of the penalty to try; a held-out tenth of the training pictures decides",
    )
    max_iterations: int = Field(MAX_ITERATIONS, ge=1, description="of L-BFGS, for each strength")
    tolerance: float = Field(TOLERANCE, gt=0, allow_inf_nan=False, description="largest slope at which it is solved")

    def scores(self, bench: Bench) -> Iterator[Score]:
        train, test = bench.features(self.pool, self.blocks)
        hits, l2 = logistic_probe(train, test, bench.num_classes, self, bench.seed)
        yield Score("", accuracy(hits), 100.0 * hits.cpu().numpy(), {"l2": l2})


def logistic_probe(
    train: Features, test: Features, num_classes: int, config: Config, seed: int = 0
) -> tuple[Tensor, float]:
    """(hits of test images [n], chosen strength), held out as in the linear probe; ties go to the larger strength."""
    # line searches near the optimum compare losses that float32 cannot tell apart; Apple's GPUs have nothing else
    precise = torch.float32 if train.x.device.type == "mps" else torch.float64
    train, test = (Features(split.x.to(precise), split.y) for split in standardize(train, test))
    solver: Any = {"max_iterations": config.max_iterations, "tolerance": config.tolerance}
    # each solution is a good start for the next weaker penalty
    strengths, right = sorted(config.l2, reverse=True), np.zeros(len(config.l2))
    if len(strengths) > 1:
        for held, kept in hold_out(train.y.cpu().numpy(), seed):
            some, others, found = train.take(kept), train.take(held), None
            for place, l2 in enumerate(strengths):
                found = fit(some.x, some.y, num_classes, l2, found and found.regression, **solver)
                right[place] += _hits(found.regression, others).sum().item()
    l2 = strengths[int(right.argmax())]
    found = fit(train.x, train.y, num_classes, l2, **solver)
    if found.slope > config.tolerance:
        log.warning(
            "logistic regression stopped after %d iterations at a slope of %.1e, tolerance %.1e: raise max_iterations",
            config.max_iterations,
            found.slope,
            config.tolerance,
        )
    return _hits(found.regression, test), l2


def _hits(regression: Regression, test: Features) -> Tensor:
    return regression.logits(test.x).argmax(-1) == test.y
