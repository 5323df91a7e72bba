"""A linear probe on frozen features: all learning rates at once, the best chosen without the test set."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Annotated, ClassVar, NamedTuple

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from unlabeled.data.subset import stratified
from unlabeled.evaluate.base import Protocol, Score
from unlabeled.evaluate.features import Features
from unlabeled.evaluate.pooling import Wanted

if TYPE_CHECKING:
    from unlabeled.evaluate.bench import Bench

MOMENTUM = 0.9
HELD_OUT = 0.1
# a tenth of few labels says little, so it is drawn anew until about this many samples were held out
HELD_OUT_ENOUGH, HELD_OUT_DRAWS = 500, 5
CHUNK = 4096  # samples classified at a time
EPS = 1e-6  # of MAE's BatchNorm before the head
LearningRate = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class Linear(Protocol, frozen=True, extra="forbid"):
    """Softmax regression on standardised features: SGD, momentum 0.9, cosine schedule, no weight decay."""

    protocol: ClassVar[str] = "linear"
    version: ClassVar[str] = "linear/1"
    few_labels: ClassVar[bool] = True

    lrs: tuple[LearningRate, ...] = Field(
        (1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 0.1, 0.3, 1.0),
        min_length=1,
        description="learning rates to try; a held-out tenth of the training pictures decides",
    )
    epochs: int = Field(100, ge=1, description="passes over the training features")
    max_steps: int = Field(1000, ge=1, description="steps at most, whatever the epochs")
    batch_size: int = Field(1024, ge=1, description="features per step, at most all of them")

    def wants(self, bench: Bench) -> list[Wanted]:
        return [Wanted(bench.pool)]

    def scores(self, bench: Bench) -> Iterator[Score]:
        train, test = bench.features()
        found = linear_probe(train, test, bench.num_classes, self, bench.seed)
        yield Score("linear", found.accuracy, None, {"lr": found.lr})


class Heads(NamedTuple):
    """One linear classifier per learning rate.

    Attributes:
        weight: [D, L, C].
        bias: [L, C].
    """

    weight: Tensor
    bias: Tensor

    def logits(self, x: Tensor) -> Tensor:
        """Features [B, D] to logits [B, L, C]: all heads in one matrix product."""
        return torch.addmm(self.bias.flatten(), x, self.weight.flatten(1)).unflatten(1, self.bias.shape)


class Probe(NamedTuple):
    """What a linear probe found: top-1 accuracy on the test set, percent, and the learning rate it chose."""

    accuracy: float
    lr: float


@torch.no_grad()
def linear_probe(train: Features, test: Features, num_classes: int, config: Linear, seed: int = 0) -> Probe:
    """Choose the learning rate on a held-out tenth, train on everything with it, report on the test set.

    Of few samples several tenths are held out in turn. Classes with a single sample hold nothing out; when
    no class can, the training accuracy decides. Ties go to the smaller learning rate. Runs where the features
    are; random choices come from `seed` alone.
    """
    train, test = _standardize(train, test)
    found = np.zeros(len(config.lrs))
    for held, kept in _hold_out(train.y.cpu().numpy(), seed):
        heads = train_heads(train.take(kept), num_classes, config.lrs, config, seed)
        found += _hits(heads, train.take(held))
    lr = min(rate for rate, hits in zip(config.lrs, found, strict=True) if hits == found.max())
    head = train_heads(train, num_classes, (lr,), config, seed)
    return Probe(100 * float(_hits(head, test)[0]) / len(test.y), lr)


@torch.no_grad()
def train_heads(train: Features, num_classes: int, lrs: Sequence[float], config: Linear, seed: int) -> Heads:
    """Train one head per learning rate from zero, all on the same batches; each as if it were alone.

    Args:
        train: standardised features.
        num_classes: C.
        lrs: L peak learning rates.
        config: epochs, steps and batch size.
        seed: of the order of samples.
    """
    x, y = train
    lr = x.new_tensor(lrs).unsqueeze(1)
    heads = Heads(x.new_zeros(x.shape[1], len(lrs), num_classes), x.new_zeros(len(lrs), num_classes))
    speed = Heads(*map(torch.zeros_like, heads))
    batches = list(_batches(len(x), config, seed))
    for step, rows in enumerate(batches):
        rows = rows.to(x.device)

        # the gradient of the mean cross-entropy with respect to logits: (probability - target) / batch
        error = heads.logits(x[rows]).softmax(-1)
        error[torch.arange(len(rows), device=x.device), :, y[rows]] -= 1
        error /= len(rows)
        gradient = Heads((x[rows].T @ error.flatten(1)).unflatten(1, heads.bias.shape), error.sum(0))
        now = lr * (0.5 + 0.5 * math.cos(math.pi * step / len(batches)))
        for parameter, velocity, slope in zip(heads, speed, gradient, strict=True):
            parameter.sub_(now * velocity.mul_(MOMENTUM).add_(slope))
    return heads


def _batches(n: int, config: Linear, seed: int) -> Iterator[Tensor]:
    """Rows of each step: a new order every epoch, its tail dropped."""
    generator = torch.Generator().manual_seed(seed)
    size = min(config.batch_size, n)
    steps = min(config.max_steps, config.epochs * (n // size))
    for step in range(steps):
        place = step % (n // size)
        if place == 0:
            order = torch.randperm(n, generator=generator)
        yield order[place * size : (place + 1) * size]


def _standardize(train: Features, test: Features) -> tuple[Features, Features]:
    """Zero mean and unit variance over the training set: what an affine-free BatchNorm would do."""
    variance, mean = torch.var_mean(train.x, dim=0, correction=0)
    scale = (variance + EPS).rsqrt()
    return Features((train.x - mean) * scale, train.y), Features((test.x - mean) * scale, test.y)


def _hold_out(labels: np.ndarray, seed: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """(held, kept) rows, several times for few labels; both are all rows when no class has two samples."""
    several = np.where(np.bincount(labels)[labels] > 1, labels, -1)
    everything = np.arange(len(labels))
    if (several < 0).all():
        yield everything, everything
        return
    draws = np.clip(HELD_OUT_ENOUGH / (HELD_OUT * len(labels)), 1, HELD_OUT_DRAWS)
    for draw in range(int(draws)):
        held = stratified(several, HELD_OUT, seed * HELD_OUT_DRAWS + draw)
        yield held, np.setdiff1d(everything, held)


def _hits(heads: Heads, test: Features) -> np.ndarray:
    """How many samples every head classifies right [L]."""
    prediction = torch.cat([heads.logits(x).argmax(-1) for x in test.x.split(CHUNK)])
    return (prediction == test.y.unsqueeze(1)).sum(0).cpu().numpy()
