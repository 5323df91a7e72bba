"""Scores of a segmentation: mean intersection over union at the full size of masks, and that of each class."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from unlabeled.data.source import Source
from unlabeled.evaluate.segmentation_heads import overlap
from unlabeled.progress import Clock
from unlabeled.report.intervals import percentiles, resampled
from unlabeled.transfer.predict import Predict
from unlabeled.transfer.segmentation.images import Masked
from unlabeled.transfer.segmentation.predicting import Judged, judge
from unlabeled.transfer.task import Choice

PICTURES = 12  # whose classes are kept, to be drawn
MEASURES = ("iou", "recall", "precision", "pixels")  # of a class; the last is its share of them


class Scorer:
    """Scores a segmentation on images with masks, each seen as a whole; `latest` is the newest result, `judged` what
    was counted in each image."""

    def __init__(self, predict: Predict, source: Masked) -> None:
        self.predict, self.classes, self.ignored = predict, source.classes, source.ignored
        self.source: Source = source
        self.choice: Choice | None = None
        self.latest: dict[str, Any] | None = None
        self.judged: list[Judged] = []
        self.clock = Clock()
        last = len(source) - 1
        self.shown = set(np.linspace(0, last, min(PICTURES, last + 1)).astype(int).tolist())

    def __call__(self, method: Any) -> dict[str, Any]:
        """Scores in percent as JSON, see `scores_of`. All processes must call it."""
        with self.predict.reading(method):
            self.judged = judge(method.predict, self.source, self.predict, self.shown)
        self.latest = {**scores_of(self.judged, self.classes), "unlabelled": self.ignored}
        return self.latest


def scores_of(judged: Sequence[Judged], classes: Sequence[str]) -> dict[str, Any]:
    """Scores in percent: `miou`, the mean over classes that occur in masks or predictions, `pixel_accuracy`, and of
    each class its `iou`, `recall` and `precision`, None where there is no such pixel."""
    counts = torch.stack([one.counts for one in judged])
    both, there, found = counts.sum(0).double()
    overlaps, pixels, holds = overlap(both, there, found), there.sum(), (counts[:, 1] > 0).sum(0)
    columns = (overlaps, both / there, both / found, there / pixels)
    each = {
        name: {
            **{measure: _percent(column[number]) for measure, column in zip(MEASURES, columns, strict=True)},
            "pictures": int(holds[number]),
        }
        for number, name in enumerate(classes)
    }
    return {
        "miou": _percent(overlaps.nanmean()) or 0.0,
        "pixel_accuracy": _percent(both.sum() / pixels),
        "per_class": each,
        "labelled_pixels": int(pixels),
        "pictures": len(judged),
        "groups": {},  # of classes by how common they are: not for pixels
    }


def interval_of(judged: Sequence[Judged]) -> list[float] | None:
    """The interval of `miou` over images by the bootstrap, percent; None without labelled pixels."""
    counts = torch.stack([one.counts for one in judged]).double()
    if not counts.any():
        return None
    means = []
    for times in resampled(len(counts)):
        drawn = torch.einsum("rn,nkc->krc", torch.from_numpy(times), counts)
        means.append(overlap(*drawn).nanmean(1))
    return [round(100 * bound, 4) for bound in percentiles(torch.cat(means).numpy())]


def _percent(share: Tensor) -> float | None:
    return None if share.isnan() else round(100 * share.item(), 4)
