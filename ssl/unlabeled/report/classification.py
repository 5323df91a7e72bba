"""Scores of a classifier from its logits on labelled images."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from unlabeled.report.calibration import Reliability, reliability
from unlabeled.report.confusion import MOST_CELLS, Confusion
from unlabeled.report.intervals import bootstrap
from unlabeled.report.per_class import MOST_CURVES, auroc, precision, recall

TOP = 5
MANY, FEW = 100, 20


class Outcomes(NamedTuple):
    """A summary of the logits of n images whose size does not depend on the number of classes.

    Attributes:
        labels: [n] int64, the true classes.
        predicted: [n] int64.
        among: [n] bool, whether the true class is among the five most probable.
        nll: [n] float64, negative log-likelihood of the true class, nats.
        confidence: [n] float64, probability of the predicted class.
    """

    labels: Tensor
    predicted: Tensor
    among: Tensor
    nll: Tensor
    confidence: Tensor

    @classmethod
    def of(cls, logits: Tensor, labels: Tensor) -> Outcomes:
        """Summarise logits [n, C]; labels [n] in [0, C)."""
        logits = logits.float()
        among = (logits.topk(min(TOP, logits.shape[1])).indices == labels.unsqueeze(1)).any(1)
        nll = F.cross_entropy(logits.double(), labels, reduction="none")
        return cls(labels, logits.argmax(-1), among, nll, logits.double().softmax(-1).amax(-1))

    def columns(self) -> Tensor:
        """All but the labels as [n, 4] float64, which holds every number exactly."""
        return torch.stack([part.double() for part in self[1:]], dim=1)

    @classmethod
    def read(cls, columns: Tensor, labels: Tensor) -> Outcomes:
        """The inverse of `columns`."""
        predicted, among, nll, confidence = columns.unbind(1)
        return cls(labels, predicted.long(), among.bool(), nll, confidence)


class Group(NamedTuple):
    """The number of classes with a similar number of training images, and their mean accuracy in percent."""

    classes: int
    accuracy: float


class Classification(NamedTuple):
    """Scores in percent, over the classes that occur among the evaluated images.

    Attributes:
        pictures: number of evaluated images.
        accuracy: top-1.
        interval: of the accuracy, 95 %, by bootstrap over images.
        top5: share whose class is among the five most probable; None with five classes or fewer.
        majority: accuracy of predicting the most frequent class of training; None where that is not known.
        balanced_accuracy: mean over classes of `per_class`.
        mean_precision: mean over classes of `precision`.
        mean_auroc: mean over classes of `auroc`; None where there is none.
        uneven: images of the largest evaluated class over those of the smallest.
        groups: by training images: "many" (> 100), "medium" (20 to 100), "few" (< 20); empty groups are left out.
        nll: mean negative log-likelihood, nats.
        ece: expected calibration error, 15 bins.
        per_class: recall of each class.
        precision: of each class; 0 for one that was never predicted.
        auroc: area under the ROC curve of each class against all others; empty above 1,000 classes.
        confusion: counts of true and predicted classes.
        reliability: the bins of `ece`.
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
    confusion: Confusion
    reliability: Reliability

    def summary(self) -> dict[str, Any]:
        """As JSON, percentages to three digits where there are many of them.

        `confusion` is [C, C], rows the true class. Above 1,000 classes `confused` takes its place: counts of predicted
        classes for the true classes of the lowest recall.
        """
        confusion: dict[str, Any] = {"confused": {i: self.confusion.row(i) for i in self.confusion.hardest()}}
        if self.confusion.classes <= MOST_CELLS:
            confusion = {"confusion": self.confusion.dense().tolist()}
        return {
            **{name: value for name, value in self._asdict().items() if name != "confusion"},
            **confusion,
            "groups": {name: group._asdict() for name, group in self.groups.items()},
            **{
                measure: {name: round(share, 3) for name, share in getattr(self, measure).items()}
                for measure in ("per_class", "precision", "auroc")
            },
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
        train_counts: [C] training images of each class; None = `groups` is empty.
    """
    areas = auroc(logits, labels) if len(classes) <= MOST_CURVES else None
    return classification_of(Outcomes.of(logits, labels), classes, train_counts, areas)


def classification_of(
    found: Outcomes, classes: Sequence[str], train_counts: Tensor | None = None, areas: Tensor | None = None
) -> Classification:
    """The same from the summary of at least one image, and the areas under ROC curves [C]."""
    labels, predicted, correct = found.labels, found.predicted, found.predicted == found.labels
    recalls = recall(predicted, labels, len(classes))
    precisions = precision(predicted, labels, len(classes))
    areas = torch.full_like(recalls, float("nan")) if areas is None else areas
    counts = torch.bincount(labels, minlength=len(classes))
    present = counts > 0
    binned = reliability(found.confidence, correct)
    low, high = bootstrap(correct.cpu().numpy())
    return Classification(
        pictures=len(labels),
        accuracy=100 * correct.double().mean().item(),
        interval=(100 * low, 100 * high),
        top5=100 * found.among.double().mean().item() if len(classes) > TOP else None,
        majority=None if train_counts is None else 100 * (labels == train_counts.argmax()).double().mean().item(),
        balanced_accuracy=100 * recalls[present].mean().item(),
        mean_precision=100 * precisions[present].mean().item(),
        mean_auroc=None if areas.isnan().all() else 100 * areas.nanmean().item(),
        uneven=counts.max().item() / counts[present].min().item(),
        groups={} if train_counts is None else groups(recalls, train_counts),
        nll=found.nll.mean().item(),
        ece=100 * binned.error,
        per_class=_percent(recalls, classes),
        precision=_percent(precisions.where(present, float("nan")), classes),
        auroc=_percent(areas, classes),
        confusion=Confusion.of(predicted, labels, len(classes)),
        reliability=binned,
    )


def _percent(shares: Tensor, classes: Sequence[str]) -> dict[str, float]:
    """Percentages by class name, from shares [C], NaN left out."""
    return {name: 100 * share for name, share in zip(classes, shares.tolist(), strict=True) if not math.isnan(share)}


def groups(recalls: Tensor, train_counts: Tensor) -> dict[str, Group]:
    """Mean recall [C] of classes with many, medium and few training images [C], NaN where a class was not evaluated.

    Liu et al. 2019, "Large-Scale Long-Tailed Recognition in an Open World".
    """
    many, few, present = train_counts > MANY, train_counts < FEW, ~recalls.isnan()
    masks = {"many": many & present, "medium": ~many & ~few & present, "few": few & present}
    return {
        name: Group(int(mask.sum()), 100 * recalls[mask].mean().item()) for name, mask in masks.items() if mask.any()
    }
