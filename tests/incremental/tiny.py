"""Tasks, networks and ends of tasks that the tests of class-incremental strategies share."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from unlabeled.incremental.strategy import After, Coming, Kept

NUMBERS = torch.empty(0, dtype=torch.int64)


def coming(number: int = 1, old: int = 4, new: int = 3, memory: int = 0, seed: int = 0) -> Coming:
    """A task with five images of each new class and `memory` of each old one."""
    counts = torch.tensor([memory] * old + [5] * new)
    return Coming(number, 3, old, new, counts, seed)


def kept(tensors: Mapping[str, Tensor] | None = None, memory: Tensor = NUMBERS) -> Kept:
    return Kept(tensors or {}, memory)


def after(
    features: Tensor,
    labels: Tensor,
    numbers: Tensor | None = None,
    logits: Tensor | None = None,
    mirrored: Tensor | None = None,
    parameters: Mapping[str, Tensor] | None = None,
    importances: Mapping[str, Tensor] | None = None,
) -> After:
    """The end of a task; images are numbered in their order unless told otherwise."""
    return After(
        features,
        labels,
        features.float() if logits is None else logits,
        torch.arange(len(labels)) if numbers is None else numbers,
        parameters or {},
        lambda: features if mirrored is None else mirrored,
        lambda: dict(importances or {}),
    )


def blobs(classes: int, images: int, width: int = 6, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Features [n, width], float64, and labels of classes that lie apart, class by class."""
    torch.manual_seed(seed)
    labels = torch.arange(classes).repeat_interleave(images)
    return 2 * torch.randn(classes, width, dtype=torch.float64)[labels] + torch.randn(
        len(labels), width, dtype=torch.float64
    ), labels


def network(width: int = 4, classes: int = 3) -> nn.Module:
    """A small network in float64 with a norm whose statistics are not those of a batch, and dropout."""
    torch.manual_seed(0)
    norm = nn.BatchNorm1d(5)
    made = nn.Sequential(nn.Linear(width, 5), norm, nn.Tanh(), nn.Dropout(0.5), nn.Linear(5, classes)).double()
    norm.running_mean.normal_()  # type: ignore[union-attr]
    norm.running_var.uniform_(0.5, 2)  # type: ignore[union-attr]
    return made
