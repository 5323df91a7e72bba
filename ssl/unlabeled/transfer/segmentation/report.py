"""The result of a segmentation as a report: `result.json`, `result.md` and a part of the run's page."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from unlabeled.report.document import Document, Figure, Part, Table, Text
from unlabeled.report.intervals import estimate
from unlabeled.report.page import circumstances

PICTURE = "segments.jpg"
HEAD = ("class", "IoU, %", "recall, %", "precision, %", "pixels, %", "pictures")


def page(result: dict[str, Any]) -> Document:
    """Scores, classes, pictures, protocol and cost, from the content of `result.json`."""
    name = result["protocol"]["name"]
    return Document(f"{name}: mean IoU {result['miou']:.2f} %", list(parts(result)), result)


def parts(result: dict[str, Any]) -> Iterator[Part]:
    """The parts of the report."""
    yield Table(("score", "value"), list(_scores(result)))
    yield Figure(PICTURE, "pictures, and beside them their masks and the classes that were found")
    yield Text("Classes", "heading")
    yield Table(HEAD, list(_classes(result)))
    yield Text("Protocol and cost", "heading")
    yield circumstances(result)


def _scores(result: dict[str, Any]) -> Iterator[tuple[str, str]]:
    interval = result["interval"]
    yield (
        "mean intersection over union of the classes, % [95 %, bootstrap over pictures]",
        estimate(result["miou"], interval=None if interval is None else (interval[0], interval[1])),
    )
    if result["pixel_accuracy"] is not None:
        yield "pixels that are right, %", estimate(result["pixel_accuracy"])
    yield "labelled pixels", f"{result['labelled_pixels']:,}"
    yield "pictures", f"{result['pictures']:,}"
    if result["unlabelled"] is not None:
        yield "value of unlabelled pixels, which do not count", str(result["unlabelled"])


def _classes(result: dict[str, Any]) -> Iterator[tuple[str, ...]]:
    """The classes, the hardest first, those that do not occur last."""
    found = result["per_class"].items()
    for name, own in sorted(found, key=lambda pair: (pair[1]["iou"] is None, pair[1]["iou"] or 0)):
        shares = ("-" if own[score] is None else estimate(own[score]) for score in ("iou", "recall", "precision"))
        yield name, *shares, estimate(own["pixels"] or 0), f"{own['pictures']:,}"
