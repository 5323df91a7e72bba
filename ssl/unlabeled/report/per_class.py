"""Recall, precision and area under the ROC curve of each class."""

from __future__ import annotations

import torch
from torch import Tensor

# with more classes, curves take minutes and are not read
MOST_CURVES = 1000
CHUNK = 64


def recall(predicted: Tensor, labels: Tensor, num_classes: int) -> Tensor:
    """Recall of each class [C], float64; NaN for a class without images."""
    return _right(predicted, labels, num_classes) / torch.bincount(labels, minlength=num_classes)


def precision(predicted: Tensor, labels: Tensor, num_classes: int) -> Tensor:
    """Precision of each class [C], float64; 0 for a class that was never predicted."""
    called = torch.bincount(predicted, minlength=num_classes)
    return _right(predicted, labels, num_classes) / called.clamp_min(1)


def _right(predicted: Tensor, labels: Tensor, num_classes: int) -> Tensor:
    return torch.bincount(labels[predicted == labels], minlength=num_classes).double()


def auroc(logits: Tensor, labels: Tensor) -> Tensor:
    """Area under the ROC curve of each class against all others [C], float64.

    It is the chance that an image of the class gets a higher probability of it than an image of another class, ties
    counted half (Fawcett 2006, "An introduction to ROC analysis"). NaN without such pairs.

    Args:
        logits: [n, C].
        labels: [n].
    """
    norm = logits.double().logsumexp(1, keepdim=True)
    areas = [
        _areas(logits[:, start : start + CHUNK].double() - norm, labels - start)
        for start in range(0, logits.shape[1], CHUNK)
    ]
    return torch.cat(areas)


def _areas(scores: Tensor, labels: Tensor) -> Tensor:
    """Areas of c classes, from scores [n, c]; labels [n] below 0 or from c on are other classes."""
    ordered = scores.T.contiguous().sort(dim=1).values
    found = []
    for i, everything in enumerate(ordered):
        own = scores[labels == i, i].sort().values
        others = len(everything) - len(own)
        # other images below each of the class's own, and those at most as high
        below, upto = (
            torch.searchsorted(everything, own, right=right) - torch.searchsorted(own, own, right=right)
            for right in (False, True)
        )
        pairs = len(own) * others
        found.append((below + upto).double().sum() / 2 / pairs if pairs else scores.new_tensor(float("nan")))
    return torch.stack(found)
