"""Average precision by `faster-coco-eval`, the extra `detect`: the same numbers as by numpy, sooner."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec
from typing import Any

import numpy as np

from unlabeled.transfer.detection import average_precision
from unlabeled.transfer.detection.average_precision import SIZES, Floats, Found, Objects, Summary

NAME = "faster_coco_eval"


def summary(truth: Sequence[Objects], found: Sequence[Found], classes: int) -> Summary:
    """See `average_precision.summary`, which does it where the library is not installed or nothing was found."""
    if find_spec(NAME) is None or not any(len(one.classes) for one in found):
        return average_precision.summary(truth, found, classes)
    from faster_coco_eval import COCO, COCOeval_faster

    known = COCO(_content(truth, classes))
    run = COCOeval_faster(known, known.loadRes(_results(found)), "bbox")
    run.evaluate()
    run.accumulate()
    assert list(run.params.areaRngLbl) == list(SIZES), run.params.areaRngLbl
    precision, recall = (np.where(found < 0, np.nan, found)[..., -1] for found in _scores(run.eval))
    return Summary(precision.mean(1), recall)


def _scores(run: Any) -> tuple[Floats, Floats]:
    return np.asarray(run["precision"]), np.asarray(run["recall"])


def _content(truth: Sequence[Objects], classes: int) -> dict[str, Any]:
    """Objects as COCO's JSON has them, all numbered from 0 but annotations."""
    annotations: list[dict[str, Any]] = []
    for image, true in enumerate(truth):
        for box, number, crowd, area in zip(*(column.tolist() for column in true), strict=True):
            about = {"image_id": image, "category_id": number, "bbox": _sides(box), "iscrowd": int(crowd)}
            annotations.append({"id": len(annotations) + 1, "area": area, **about})
    images = [{"id": image, "height": 1, "width": 1} for image in range(len(truth))]
    return {"images": images, "annotations": annotations, "categories": [{"id": n} for n in range(classes)], "info": {}}


def _results(found: Sequence[Found]) -> list[dict[str, Any]]:
    return [
        {"image_id": image, "category_id": number, "bbox": _sides(box), "score": score}
        for image, one in enumerate(found)
        for box, number, score in zip(*(column.tolist() for column in one), strict=True)
    ]


def _sides(box: Sequence[float]) -> list[float]:
    left, top, right, bottom = box
    return [left, top, right - left, bottom - top]
