"""Everything that is said about a classifier, from its logits on labelled pictures."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from unlabeled.report.calibration import Reliability, reliability
from unlabeled.report.intervals import bootstrap
from unlabeled.report.per_class import MOST_CURVES, auroc, precision, recall

TOP = 5
MANY, FEW = 100, 20


class Group(NamedTuple):
    """Classes with about as many training pictures: how many they are, and the mean of their accuracies in percent."""

    classes: int
    accuracy: float


class Classification(NamedTuple):
    """Scores in percent, of the classes that the evaluated pictures have.

    Attributes:
        pictures: how many were evaluated.
        accuracy: top-1.
        interval: of the accuracy, 95 %, by the bootstrap over pictures.
        top5: share whose class is among the five best; None with five classes or fewer.
        majority: accuracy of calling every picture the most frequent class of training; None where that is not known.
        balanced_accuracy: mean over classes of `per_class`.
        mean_precision: mean over classes of `precision`.
        mean_auroc: mean over classes of `auroc`; None where there is none.
        uneven: pictures of the largest evaluated class over those of the smallest.
        groups: by training pictures: "many" (> 100), "medium" (20 to 100), "few" (< 20); those there are.
        nll: mean negative log-likelihood, nats.
        ece: expected calibration error, 15 bins.
        per_class: share of each class's pictures that was recognised, its recall.
        precision: share of the pictures called so that are of the class; 0 where none was.
        auroc: area under the ROC curve of each class against all others; none above 1,000 classes.
        confusion: [C, C] int64, rows the true class, columns the predicted one.
        reliability: the bins behind `ece`.
    """

    pictures: int
    accuracy: float
    interval: tuple[float, float]
    top5: float | None
    majority: float | None
    balanced_accuracy: float
    mean_precision: float
    mean_auroc: float | None
    uneven: float
    groups: dict[str, Group]
    nll: float
    ece: float
    per_class: dict[str, float]
    precision: dict[str, float]
    auroc: dict[str, float]
    confusion: Tensor
    reliability: Reliability

    def summary(self) -> dict[str, Any]:
        """As JSON, percentages to three digits where there are many of them."""
        return {
            **self._asdict(),
            "groups": {name: group._asdict() for name, group in self.groups.items()},
            **{
                measure: {name: round(share, 3) for name, share in getattr(self, measure).items()}
                for measure in ("per_class", "precision", "auroc")
            },
            "confusion": self.confusion.tolist(),
            "reliability": {name: values.tolist() for name, values in self.reliability._asdict().items()},
        }


def classification(
    logits: Tensor, labels: Tensor, classes: Sequence[str], train_counts: Tensor | None = None
) -> Classification:
    """Score a classifier.

    Args:
        logits: [n, C], n at least 1.
        labels: [n] in [0, C).
        classes: C names.
        train_counts: [C] training pictures of each class; None = `groups` is empty.
    """
    logits, predicted = logits.float(), logits.argmax(-1)
    correct = predicted == labels
    recalls = recall(predicted, labels, len(classes))
    precisions = precision(predicted, labels, len(classes))
    areas = auroc(logits, labels) if len(classes) <= MOST_CURVES else torch.full_like(recalls, float("nan"))
    counts = torch.bincount(labels, minlength=len(classes))
    present = counts > 0
    binned = reliability(logits, labels)
    low, high = bootstrap(correct.cpu().numpy())
    return Classification(
        pictures=len(labels),
        accuracy=100 * correct.double().mean().item(),
        interval=(100 * low, 100 * high),
        top5=100 * topk_accuracy(logits, labels, TOP) if len(classes) > TOP else None,
        majority=None if train_counts is None else 100 * (labels == train_counts.argmax()).double().mean().item(),
        balanced_accuracy=100 * recalls[present].mean().item(),
        mean_precision=100 * precisions[present].mean().item(),
        mean_auroc=None if areas.isnan().all() else 100 * areas.nanmean().item(),
        uneven=counts.max().item() / counts[present].min().item(),
        groups={} if train_counts is None else groups(recalls, train_counts),
        nll=F.cross_entropy(logits.double(), labels).item(),
        ece=100 * binned.error,
        per_class=_percent(recalls, classes),
        precision=_percent(precisions.where(present, float("nan")), classes),
        auroc=_percent(areas, classes),
        confusion=confusion_matrix(predicted, labels, len(classes)),
        reliability=binned,
    )


def _percent(shares: Tensor, classes: Sequence[str]) -> dict[str, float]:
    """Of the classes that have a value [C]."""
    return {name: 100 * share for name, share in zip(classes, shares.tolist(), strict=True) if not math.isnan(share)}


def confusion_matrix(predicted: Tensor, labels: Tensor, num_classes: int) -> Tensor:
    """[C, C] counts int64: rows the true class, columns the predicted one, of classes [n]."""
    return torch.bincount(labels * num_classes + predicted, minlength=num_classes**2).view(num_classes, num_classes)


def topk_accuracy(logits: Tensor, labels: Tensor, k: int) -> float:
    """Share of pictures whose class is among the k with the highest logits [n, C]."""
    best = logits.topk(min(k, logits.shape[1])).indices
    return (best == labels.unsqueeze(1)).any(1).double().mean().item()


def groups(recalls: Tensor, train_counts: Tensor) -> dict[str, Group]:
    """Mean recall of classes with many, medium and few training pictures (Liu et al. 2019, "Large-Scale Long-Tailed
    Recognition in an Open World").

    Args:
        recalls: [C], NaN where a class was not evaluated.
        train_counts: [C].
    """
    many, few, present = train_counts > MANY, train_counts < FEW, ~recalls.isnan()
    masks = {"many": many & present, "medium": ~many & ~few & present, "few": few & present}
    return {
        name: Group(int(mask.sum()), 100 * recalls[mask].mean().item()) for name, mask in masks.items() if mask.any()
    }
