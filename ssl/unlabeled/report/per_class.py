"""How well each class is told from the others: recall, precision, and the area under its ROC curve."""

from __future__ import annotations

import torch
from torch import Tensor

# beyond so many classes curves cost minutes and nobody reads them
MOST_CURVES = 1000
CHUNK = 64


def recall(predicted: Tensor, labels: Tensor, num_classes: int) -> Tensor:
    """Share of each class's pictures that was recognised [C], float64; NaN where there is none."""
    return _right(predicted, labels, num_classes) / torch.bincount(labels, minlength=num_classes)


def precision(predicted: Tensor, labels: Tensor, num_classes: int) -> Tensor:
    """Share of the pictures that were called a class which are of it [C], float64; 0 where none was called so."""
    called = torch.bincount(predicted, minlength=num_classes)
    return _right(predicted, labels, num_classes) / called.clamp_min(1)


def _right(predicted: Tensor, labels: Tensor, num_classes: int) -> Tensor:
    return torch.bincount(labels[predicted == labels], minlength=num_classes).double()


def auroc(logits: Tensor, labels: Tensor) -> Tensor:
    """Area under the ROC curve of every class against all others, by its probability [C], float64.

    It is the probability that a picture of the class gets a higher probability of it than a picture of another class,
    equal ones counted half (Fawcett 2006, "An introduction to ROC analysis"). NaN where there are no such pairs.

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
    """Those of some classes, from scores [n, c]; labels [n] below 0 or from c on are of other classes."""
    ordered = scores.T.contiguous().sort(dim=1).values
    found = []
    for i, everything in enumerate(ordered):
        own = scores[labels == i, i].sort().values
        others = len(everything) - len(own)
        # pictures below each of the class's own, and those at most as high: all of them less those of the class
        below, upto = (
            torch.searchsorted(everything, own, right=right) - torch.searchsorted(own, own, right=right)
            for right in (False, True)
        )
        pairs = len(own) * others
        found.append((below + upto).double().sum() / 2 / pairs if pairs else scores.new_tensor(float("nan")))
    return torch.stack(found)
