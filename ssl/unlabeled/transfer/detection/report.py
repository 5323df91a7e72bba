"""The result of a detector as a report: `result.json`, `result.md` and a part of the run's page."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from unlabeled.report.document import Document, Figure, Part, Table, Text
from unlabeled.report.intervals import estimate
from unlabeled.report.page import circumstances

PICTURE = "detections.jpg"
SCORES = {
    "map50": "mean average precision at an overlap of 0.5, %",
    "map75": "at 0.75, %",
    "map_small": "of objects below 32 x 32 pixels, %",
    "map_medium": "of 32 x 32 to 96 x 96 pixels, %",
    "map_large": "of larger ones, %",
    "recall": "recall with 100 boxes a picture, %",
}
HEAD = ("class", "mAP, %", "at 0.5, %", "recall, %", "objects", "pictures")


def page(result: dict[str, Any]) -> Document:
    """Scores, classes, pictures, protocol and cost, from the content of `result.json`."""
    name = result["protocol"]["name"]
    return Document(f"{name}: mean average precision {result['map']:.2f} %", list(parts(result)), result)


def parts(result: dict[str, Any]) -> Iterator[Part]:
    """The parts of the report."""
    yield Table(("score", "value"), list(_scores(result)))
    yield Figure(PICTURE, "pictures with their objects (green), and beside them what was found (red)")
    yield Text("Classes", "heading")
    yield Table(HEAD, list(_classes(result)))
    yield Text("Protocol and cost", "heading")
    yield circumstances(result)


def _scores(result: dict[str, Any]) -> Iterator[tuple[str, str]]:
    interval = result["interval"]
    yield (
        "mean average precision over overlaps of 0.5 to 0.95, % [95 %, bootstrap over pictures]",
        estimate(result["map"], interval=None if interval is None else (interval[0], interval[1])),
    )
    for name, words in SCORES.items():
        yield words, "-" if result[name] is None else estimate(result[name])
    yield "objects", f"{result['objects']:,}"
    yield "boxes that were found", f"{result['found']:,}"
    yield "pictures", f"{result['pictures']:,}"


def _classes(result: dict[str, Any]) -> Iterator[tuple[str, ...]]:
    """The classes, the hardest first, those without an object last."""
    found = result["per_class"].items()
    for name, own in sorted(found, key=lambda pair: (pair[1]["map"] is None, pair[1]["map"] or 0)):
        shares = ("-" if own[score] is None else estimate(own[score]) for score in ("map", "map50", "recall"))
        yield name, *shares, f"{own['objects']:,}", f"{own['pictures']:,}"
