"""Thresholds that follow how sure the classifier is, of each class (FreeMatch, Wang et al. 2023)."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from unlabeled.nn.collectives import mean_over_processes, mean_with_gradient
from unlabeled.transfer.threshold import Gate, Threshold

EPS = 1e-12


class Config(Threshold, frozen=True, extra="forbid"):
    """Learn from images whose largest probability is above the average one, less for classes that are seldom
    predicted; and keep predictions of all classes apart."""

    name: Literal["adaptive"] = "adaptive"
    momentum: float = Field(0.999, ge=0, lt=1, description="of the averages, per step")
    fairness: float = Field(
        0.01, ge=0, description="weight of the term that evens classes out (0.001 with few labels); 0 = none"
    )

    @property
    def crosses(self) -> bool:
        return True

    def build(self, classes: int) -> Gate:
        return Adaptive(classes, self.momentum, self.fairness)

    def when_none_pass(self) -> str:
        return "Lower optim.base_lr to a third, or set task.unlabelled.threshold.momentum=0.99, which follows faster."

    def when_one_class(self) -> str:
        more = 5 * self.fairness or 0.01
        return (
            f"Raise task.unlabelled.threshold.fairness from {self.fairness:g} to {more:g}, or lower optim.base_lr to a "
            "third."
        )


class Adaptive(Gate):
    """The threshold tau of all classes, the mean prediction P [C] and the histogram H [C] of predicted classes, all of
    them running averages over the images of all processes that start at 1 / C (equations 5 to 8)."""

    tau: Tensor
    mean: Tensor
    histogram: Tensor

    def __init__(self, classes: int, momentum: float, fairness: float) -> None:
        super().__init__()
        self.momentum, self.fairness = momentum, fairness
        self.register_buffer("tau", torch.full((), 1 / classes))
        self.register_buffer("mean", torch.full((classes,), 1 / classes))
        self.register_buffer("histogram", torch.full((classes,), 1 / classes))

    def forward(self, p: Tensor) -> Tensor:
        if self.training:
            self._update_(p)
        largest, label = p.max(-1)
        return largest >= self.tau * (self.mean / self.mean.max())[label]

    @torch.no_grad()
    def _update_(self, p: Tensor) -> None:
        classes = p.shape[-1]
        largest, label = p.max(-1)
        found = torch.cat([largest.mean().view(1), p.mean(0), F.one_hot(label, classes).to(p.dtype).mean(0)])
        now = mean_over_processes(found).to(self.tau.dtype).split([1, classes, classes])
        for average, value in zip((self.tau, self.mean, self.histogram), now, strict=True):
            average.lerp_(value.view_as(average), 1 - self.momentum)

    def terms(self, strong: Tensor, passed: Tensor) -> dict[str, Tensor]:
        if not self.fairness:
            return {}
        return {"fairness": self.fairness * evenness(strong, passed, self.mean, self.histogram)}

    def measures(self) -> dict[str, Tensor]:
        return {"threshold": self.tau.clone()}


def evenness(strong: Tensor, passed: Tensor, mean: Tensor, histogram: Tensor) -> Tensor:
    """sum_c SN(P / H)_c log SN(p / h)_c (equation 11), at most 0, and 0 where no image passes.

    SN divides by the sum; 1 / 0 counts as 0.

    Args:
        strong: logits of strong views [U, C]; p and h are the mean and the histogram of those that `passed` [U] bool,
            over all processes.
        mean, histogram: P and H [C].
    """
    p, weight = strong.softmax(-1), passed.to(strong.dtype)
    # sums of all that pass, whose number cancels in p / h
    sums = mean_with_gradient(weight @ p)
    counts = mean_over_processes(weight @ F.one_hot(p.argmax(-1), p.shape[-1]).to(p.dtype))
    target = normalised(mean.to(p.dtype), histogram.to(p.dtype))
    found = (target * (normalised(sums, counts) + EPS).log()).sum()
    return torch.where(counts.sum() > 0, found, 0)


def normalised(values: Tensor, by: Tensor) -> Tensor:
    """values / by [C], 0 where `by` is, divided by the sum; all 0 where that is."""
    ratio = torch.where(by > 0, values / torch.where(by > 0, by, 1), 0)
    return ratio / ratio.sum().clamp_min(torch.finfo(ratio.dtype).tiny)
