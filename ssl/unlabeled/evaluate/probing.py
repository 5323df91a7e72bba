"""Parts that probes of frozen features share: held-out samples, batches, standardised features, accuracy."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated
from typing import Protocol as Structure

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from unlabeled.data.label.subset import mask_singletons, stratified
from unlabeled.evaluate.features import Features

HELD_OUT = 0.1
HELD_OUT_ENOUGH, HELD_OUT_DRAWS = 500, 5  # of few labels, tenths are drawn until about so many samples were held out
EPS = 1e-6  # of MAE's BatchNorm before the head
LearningRate = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class Passes(Structure):
    """Length of a training and size of its batches."""

    @property
    def epochs(self) -> int: ...
    @property
    def max_steps(self) -> int: ...
    @property
    def batch_size(self) -> int: ...


def batches(n: int, config: Passes, seed: int) -> Iterator[Tensor]:
    """Rows of each step: a new order every epoch, its tail dropped."""
    generator, size = torch.Generator().manual_seed(seed), min(config.batch_size, n)
    for step in range(min(config.max_steps, config.epochs * (n // size))):
        if (place := step % (n // size)) == 0:
            order = torch.randperm(n, generator=generator)
        yield order[place * size : (place + 1) * size]


def standardize(train: Features, test: Features) -> tuple[Features, Features]:
    """Zero mean and unit variance over the training set, as by an affine-free BatchNorm."""
    variance, mean = torch.var_mean(train.x, dim=0, correction=0)
    scale = (variance + EPS).rsqrt()
    return Features((train.x - mean) * scale, train.y), Features((test.x - mean) * scale, test.y)


def hold_out(labels: np.ndarray, seed: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """(held, kept) rows, several times for few labels; both are all rows when no class has two samples."""
    several, everything = mask_singletons(labels), np.arange(len(labels))
    if (several < 0).all():
        yield everything, everything
        return
    draws = np.clip(HELD_OUT_ENOUGH / (HELD_OUT * len(labels)), 1, HELD_OUT_DRAWS)
    for draw in range(int(draws)):
        held = stratified(several, HELD_OUT, seed * HELD_OUT_DRAWS + draw, at_least=1)
        yield held, np.setdiff1d(everything, held)


def hits_of(scores: Tensor, labels: Tensor, top: int = 1) -> Tensor:
    """Whether each label [n] is among the `top` highest of the scores [n, C], of equal ones the first: [n] bool."""
    if top == 1:
        return scores.argmax(1) == labels
    best = scores.sort(dim=1, descending=True, stable=True).indices[:, :top]
    return (best == labels.unsqueeze(1)).any(1)


def accuracy(hits: Tensor) -> float:
    """The share of hits [n] in percent."""
    return 100 * hits.sum().item() / len(hits)


def exactly(features: Features) -> Features:
    """Features in float64, on the CPU where the device has none (Apple's GPUs)."""
    device = torch.device("cpu") if features.x.device.type == "mps" else features.x.device
    return Features(features.x.to(device).double(), features.y.to(device))


def of_classes_there(scores: Tensor, labels: Tensor) -> Tensor:
    """Scores [n, C] with -inf for classes that none of the training labels [m] is: a score of 0 could win."""
    return scores.masked_fill(torch.bincount(labels, minlength=scores.shape[1]) == 0, float("-inf"))
