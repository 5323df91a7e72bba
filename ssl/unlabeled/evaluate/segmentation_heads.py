"""Linear heads on maps of frozen patch tokens, their confusion matrix and intersection over union."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from itertools import groupby
from typing import NamedTuple
from typing import Protocol as Structure

import torch
import torch.nn.functional as F
from torch import Tensor

from unlabeled.errors import UserError
from unlabeled.evaluate.probing import EPS, Passes, batches
from unlabeled.evaluate.segmentation_values import UNLABELLED
from unlabeled.progress import track


class Map(NamedTuple):
    """Patch tokens [h, w, D], of any float type, and mask int16 [H, W] of an image, on the CPU."""

    features: Tensor
    mask: Tensor

    def scaled(self, factor: int | None) -> Map:
        """Resize the mask to `factor` times the size of the features; None = leave it."""
        if factor is None:
            return self
        rows, columns = self.features.shape[:2]
        return Map(self.features, nearest(self.mask, (factor * rows, factor * columns)))


class Standard(NamedTuple):
    """Standardisation, as by an affine-free BatchNorm before the head: mean and scale [D] float32, on its device."""

    mean: Tensor
    scale: Tensor

    @classmethod
    def of(cls, maps: Iterable[Map], device: torch.device) -> Standard:
        """Measure the tokens of all maps. Raises UserError where any is not finite."""
        count, total, squares = 0, torch.zeros(()), torch.zeros(())
        for features, _ in maps:
            x = features.flatten(0, 1).double()
            count, total, squares = count + len(x), total + x.sum(0), squares + x.square().sum(0)
        if not squares.isfinite().all():
            raise UserError(
                "patch tokens are not finite, or beyond the 65,504 of float16: the encoder has diverged. Evaluate an "
                "earlier export."
            )
        variance = (squares / count - (total / count).square()).clamp_min(0)
        return cls((total / count).float().to(device), (variance + EPS).rsqrt().float().to(device))

    def __call__(self, features: Tensor) -> Tensor:
        """Standardise features [..., D] of any float type and device."""
        return (features.to(self.mean.device).float() - self.mean) * self.scale


class HeadTraining(Passes, Structure):
    """Settings of the training of heads."""

    @property
    def weight_decay(self) -> float: ...


class PixelHeads(NamedTuple):
    """Linear classifiers of tokens, one for every learning rate: L weights [C, D], L biases [C]."""

    weights: list[Tensor]
    biases: list[Tensor]

    def logits(self, x: Tensor, shape: tuple[int, int]) -> Tensor:
        """Standardised features [B, h, w, D] to logits [B, L, C, H, W], bilinearly upsampled to `shape`."""
        flat = F.linear(x, torch.cat(self.weights), torch.cat(self.biases)).permute(0, 3, 1, 2)
        upsampled = F.interpolate(flat.contiguous(), size=shape, mode="bilinear", align_corners=False)
        return upsampled.unflatten(1, (len(self.weights), -1))


def train_heads(
    maps: Sequence[Map], standard: Standard, classes: int, lrs: Sequence[float], config: HeadTraining, seed: int
) -> PixelHeads:
    """Train one head per peak learning rate, all on the same batches; each as if it were alone.

    The order of images depends on `seed` alone.
    """
    zeros, width = standard.mean.new_zeros, len(standard.mean)
    heads = PixelHeads([zeros(classes, width) for _ in lrs], [zeros(classes) for _ in lrs])
    for parameter in (*heads.weights, *heads.biases):
        parameter.requires_grad_(True)
    groups = [{"params": pair, "lr": lr} for *pair, lr in zip(*heads, lrs, strict=True)]
    optimizer = torch.optim.AdamW(groups, weight_decay=config.weight_decay)
    steps = list(batches(len(maps), config, seed))
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: 0.5 + 0.5 * math.cos(math.pi * step / len(steps))
    )
    for rows in track(steps, "segmentation head", len(steps)):
        optimizer.zero_grad()
        with torch.enable_grad():
            loss(heads, standard, [maps[i] for i in rows.tolist()]).backward()
        optimizer.step()
        schedule.step()
    return PixelHeads(*([tensor.detach() for tensor in tensors] for tensors in heads))


def loss(heads: PixelHeads, standard: Standard, maps: Sequence[Map]) -> Tensor:
    """Sum the cross-entropy over heads; it is a mean over the labelled pixels of all masks."""
    total, labelled = standard.mean.new_zeros(()), 0
    for _, group in groupby(maps, key=lambda one: (one.features.shape, one.mask.shape)):
        features, masks = (torch.stack(column) for column in zip(*group, strict=True))
        logits = heads.logits(standard(features), (masks.shape[1], masks.shape[2]))
        targets = masks.to(logits.device).long().repeat_interleave(logits.shape[1], dim=0)
        total = total + F.cross_entropy(logits.flatten(0, 1), targets, ignore_index=UNLABELLED, reduction="sum")
        labelled += int((masks != UNLABELLED).sum())
    return total / max(1, labelled)


@torch.no_grad()
def confusion(heads: PixelHeads, standard: Standard, maps: Iterable[Map]) -> Tensor:
    """Count labelled pixels of class i (row) that each head classifies as j (column): [L, C, C] int64, on the CPU."""
    classes = len(heads.biases[0])
    total = torch.zeros(len(heads.biases), classes, classes, dtype=torch.int64)
    for features, mask in maps:
        logits = heads.logits(standard(features).unsqueeze(0), (mask.shape[0], mask.shape[1]))[0]
        for matrix, classified in zip(total, logits.argmax(1).cpu(), strict=True):
            matrix += counted(mask, classified, classes)
    return total


def counted(mask: Tensor, classified: Tensor, classes: int) -> Tensor:
    """Count labelled pixels of class i (row) in a mask [H, W] that are classified [H, W] as j (column): [C, C]."""
    labelled = mask != UNLABELLED
    pairs = mask[labelled].long() * classes + classified[labelled]
    return torch.bincount(pairs, minlength=classes**2).view(classes, classes)


def iou(confusion: Tensor) -> Tensor:
    """IoU of every class [..., C] from [..., C, C]; NaN where neither mask nor prediction has it."""
    return overlap(confusion.diagonal(dim1=-2, dim2=-1), confusion.sum(-1), confusion.sum(-2))


def overlap(both: Tensor, there: Tensor, found: Tensor) -> Tensor:
    """IoU of every class from its pixels that are both in masks and predictions, in masks, and in predictions."""
    return both.double() / (there + found - both)


def miou(confusion: Tensor) -> Tensor:
    """The mean IoU [...] over classes that occur."""
    return iou(confusion).nanmean(-1)


def nearest(mask: Tensor, shape: tuple[int, int]) -> Tensor:
    """Resize a mask [H, W]: each new pixel takes the old one that its centre lies in."""
    rows, columns = (
        ((torch.arange(new) + 0.5) * (old / new)).long() for old, new in zip(mask.shape, shape, strict=True)
    )
    return mask[rows][:, columns]
