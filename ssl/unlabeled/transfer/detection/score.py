"""Scores of a detector: COCO's mean average precisions, of all classes and of each."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from unlabeled.data.source import Source
from unlabeled.progress import Clock
from unlabeled.transfer.detection.average_precision import (
    SIZES,
    THRESHOLDS,
    Floats,
    Found,
    Objects,
    interval,
    matched,
)
from unlabeled.transfer.detection.library import summary
from unlabeled.transfer.detection.predicting import Judged, judge
from unlabeled.transfer.predict import Predict
from unlabeled.transfer.task import Choice

AT = {"map50": 0, "map75": 5}  # numbers of thresholds


class Scorer:
    """Scores a detector on images with boxes, each seen as a whole; `latest` is the newest result, `judged` what was
    found in each image."""

    def __init__(self, predict: Predict, source: Source) -> None:
        self.predict, self.source, self.classes = predict, source, source.classes
        self.choice: Choice | None = None
        self.latest: dict[str, Any] | None = None
        self.judged: list[Judged] = []
        self.clock = Clock()

    def __call__(self, method: Any) -> dict[str, Any]:
        """Scores in percent as JSON, see `scores_of`. All processes must call it."""
        with self.predict.reading(method):
            self.judged = judge(method.predict, self.source, self.predict)
        self.latest = scores_of(self.judged, self.classes)
        return self.latest


def columns_of(judged: Sequence[Judged]) -> tuple[list[Objects], list[Found]]:
    """What is there and what was found in images, as arrays."""
    truth = [
        Objects(
            one.truth.corners.double().numpy(),
            one.truth.classes.numpy(),
            one.truth.crowd.numpy(),
            one.truth.areas.numpy(),
        )
        for one in judged
    ]
    found = [
        Found(one.found.boxes.double().numpy(), one.found.classes.numpy(), one.found.scores.double().numpy())
        for one in judged
    ]
    return truth, found


def scores_of(judged: Sequence[Judged], classes: Sequence[str]) -> dict[str, Any]:
    """Mean average precisions in percent: `map` over overlaps of 0.5 to 0.95, `map50`, `map75`, `map_small`,
    `map_medium` and `map_large` by the objects' areas, `recall` with 100 boxes of a class in an image, and of each
    class; None where there is no such object."""
    truth, found = columns_of(judged)
    precision, recall = summary(truth, found, len(classes))
    sizes = {f"map_{size}": _percent(precision[:, :, place]) for place, size in enumerate(SIZES) if size != "all"}
    whole, recalled = precision[:, :, 0], recall[:, :, 0]
    owners = [(image, number) for image, one in enumerate(truth) for number in one.classes[~one.crowd].tolist()]
    each = {
        name: {
            "map": _percent(whole[:, number]),
            "map50": _percent(whole[0, number]),
            "recall": _percent(recalled[:, number]),
            "objects": sum(own == number for _, own in owners),
            "pictures": len({image for image, own in owners if own == number}),
        }
        for number, name in enumerate(classes)
    }
    return {
        "map": _percent(whole) or 0.0,
        **{name: _percent(whole[at]) for name, at in AT.items()},
        **sizes,
        "recall": _percent(recalled),
        "per_class": each,
        "overlaps": [round(float(one), 2) for one in THRESHOLDS],
        "objects": len(owners),
        "found": sum(len(one.classes) for one in found),
        "pictures": len(judged),
        "groups": {},  # of classes by how common they are: not for boxes
    }


def interval_of(judged: Sequence[Judged], classes: Sequence[str]) -> list[float] | None:
    """The interval of `map` over images, percent; None without objects."""
    bounds = interval(matched(*columns_of(judged), len(classes)))
    return None if bounds is None else [round(100 * bound, 4) for bound in bounds]


def _percent(shares: Floats) -> float | None:
    """The mean over classes that occur, in percent, of shares [..., classes] or of one class."""
    return None if np.isnan(shares).all() else round(100 * float(np.nanmean(shares)), 4)
