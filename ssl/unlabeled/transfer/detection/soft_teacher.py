"""Soft Teacher (Xu et al. 2021, "End-to-End Semi-Supervised Object Detection with Soft Teacher"): its formulas.

A teacher, the average of the detector's weights, finds boxes in weak views of images without labels. They are moved
into strong views, where the detector is to find them again.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

LEAST = 1.0  # pixels: sides of boxes that divide or are divided by are no smaller


def momentum_at(step: int, highest: float) -> float:
    """The teacher's momentum, min(highest, 1 - 1 / (step + 1)): in step 0 it becomes a copy of the detector."""
    return min(highest, 1 - 1 / (step + 1))


def between(one: Tensor, other: Tensor) -> Tensor:
    """The matrices [..., 3, 3] from one view to another, of those from the image to each."""
    return other @ torch.linalg.inv(one)


def moved(boxes: Tensor, matrix: Tensor, shape: tuple[int, int]) -> Tensor:
    """Boxes [n, 4] by a matrix [3, 3] of points (x, y, 1): the hulls of their corners, cut to (height, width)."""
    left, top, right, bottom = boxes.unbind(1)
    x, y = torch.stack([left, right, right, left], 1), torch.stack([top, top, bottom, bottom], 1)
    points = torch.stack([x, y, torch.ones_like(x)], 2) @ matrix.T
    points = points[..., :2] / points[..., 2:]
    height, width = shape
    limits = boxes.new_tensor([width, height])
    low, high = (corner.clamp_min(0).minimum(limits) for corner in (points.amin(1), points.amax(1)))
    return torch.cat([low, high], 1)


def passing(boxes: Tensor, scores: Tensor, cutoff: float, least: float = 0.0) -> Tensor:
    """Flags [n] of the boxes [n, 4] whose score [n] is above a cutoff, and whose sides are longer than `least`."""
    return (scores > cutoff) & (boxes[:, 2:] - boxes[:, :2] > least).all(1)


def jittered(boxes: Tensor, noise: Tensor, share: float) -> Tensor:
    """Boxes [n, 4] with each coordinate moved by standard normal noise [times, n, 4] times a share of the side.

    (The paper says uniform noise; the official code draws normal.)
    """
    return boxes + share * noise * _sides(boxes)


def uncertainty(refined: Tensor, classes: Tensor) -> Tensor:
    """How much the refined boxes of jittered ones differ, as shares of the mean box's sides: [n, 4].

    Args:
        refined: [times, n, classes, 4], what the teacher makes of jittered boxes, one box for each class.
        classes: [n] of the boxes.
    """
    own = refined[:, torch.arange(len(classes), device=classes.device), classes]
    mean = own.mean(0)
    deviation = ((own - mean).square().sum(0) / (len(own) - 1)).sqrt()
    return deviation / _sides(mean)


def weights_of(labels: Tensor, probabilities: Tensor, background: int) -> Tensor:
    """Weights [m] of boxes in the loss of their classes: the teacher's probability of the background where that is
    their label, 1 for those on objects. `probabilities` [m, C + 1] are the teacher's for the same boxes."""
    return torch.where(labels == background, probabilities[:, background], 1.0)


def weighted_cross_entropy(logits: Tensor, labels: Tensor, weights: Tensor) -> Tensor:
    """sum(w CE) / max(sum(w), 1) of logits [m, C + 1]."""
    each = F.cross_entropy(logits, labels, reduction="none")
    return (weights * each).sum() / weights.sum().clamp_min(1)


def _sides(boxes: Tensor) -> Tensor:
    """Width, height, width and height of boxes [..., 4], at least a pixel."""
    return (boxes[..., 2:] - boxes[..., :2]).clamp_min(LEAST).repeat(*[1] * (boxes.ndim - 1), 2)
