"""Scores of a segmentation: mean intersection over union at the full size of masks, and that of each class."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from unlabeled.evaluate.segmentation_heads import iou, miou
from unlabeled.progress import Clock
from unlabeled.report.intervals import percentiles, resampled
from unlabeled.transfer.predict import Predict
from unlabeled.transfer.segmentation.images import Masked
from unlabeled.transfer.segmentation.predicting import Judged, judge
from unlabeled.transfer.task import Choice

PICTURES = 12  # whose classes are kept, to be drawn


class Scorer:
    """Scores a segmentation on images with masks, each seen as a whole; `latest` is the newest result, `judged` what
    was counted in each image."""

    def __init__(self, predict: Predict, source: Masked) -> None:
        self.predict, self.source, self.classes = predict, source, source.classes
        self.choice: Choice | None = None
        self.latest: dict[str, Any] | None = None
        self.judged: list[Judged] = []
        self.clock = Clock()
        last = len(source) - 1
        self.shown = set(np.linspace(0, last, min(PICTURES, last + 1)).astype(int).tolist())

    def __call__(self, method: Any) -> dict[str, Any]:
        """Scores in percent as JSON, see `scores_of`. All processes must call it."""
        with self.predict.reading(method):
            total, self.judged = judge(method.predict, self.source, self.predict, self.shown)
        self.latest = {**scores_of(total, self.judged, self.classes), "unlabelled": self.source.ignored}
        return self.latest


def scores_of(total: Tensor, judged: Sequence[Judged], classes: Sequence[str]) -> dict[str, Any]:
    """Scores in percent: `miou`, the mean over classes that occur in masks or predictions, `pixel_accuracy`, and of
    each class its `iou`, `recall` and `precision`, None where there is no such pixel.

    Args:
        total: the confusion matrix [C, C] of all images.
        judged: what was counted in each.
        classes: names.
    """
    both, there, found = total.diagonal().double(), total.sum(1), total.sum(0)
    pixels = int(total.sum())
    rows = zip(classes, iou(total), both / there, both / found, there.tolist(), strict=True)
    holds = torch.stack([one.counts[1] > 0 for one in judged]).sum(0).tolist()
    each = {
        name: {
            "iou": _percent(overlap),
            "recall": _percent(recall),
            "precision": _percent(precision),
            "pixels": 100 * count / max(1, pixels),
            "pictures": pictures,
        }
        for (name, overlap, recall, precision, count), pictures in zip(rows, holds, strict=True)
    }
    return {
        "miou": _percent(miou(total)) or 0.0,
        "pixel_accuracy": _percent(both.sum() / pixels),
        "per_class": each,
        "labelled_pixels": pixels,
        "pictures": len(judged),
        "groups": {},  # of classes by how common they are: not for pixels
    }


def interval_of(judged: Sequence[Judged]) -> list[float] | None:
    """The interval of `miou` over images by the bootstrap, percent; None without labelled pixels."""
    counts = torch.stack([one.counts for one in judged]).double().numpy()
    if not counts.any():
        return None
    samples = []
    for times in resampled(len(counts)):
        both, there, found = np.einsum("rn,nkc->krc", times, counts)
        with np.errstate(invalid="ignore"):
            overlaps = both / (there + found - both)
        drawn = ~np.isnan(overlaps).all(1)
        samples.append(np.nanmean(overlaps[drawn], axis=1))
    return [round(100 * bound, 4) for bound in percentiles(np.concatenate(samples))]


def _percent(share: Tensor) -> float | None:
    return None if share.isnan() else round(100 * share.item(), 4)
