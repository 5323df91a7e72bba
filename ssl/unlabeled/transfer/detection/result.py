"""The files of a detector's result: scores with their protocol and cost, the boxes, and pictures of some."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from unlabeled.errors import BadSample
from unlabeled.files import replacing, write_text
from unlabeled.report import as_json, markdown
from unlabeled.train.engine import Engine
from unlabeled.transfer.detection.drawing import SHOWN, beside
from unlabeled.transfer.detection.predicting import Judged
from unlabeled.transfer.detection.report import PICTURE, page
from unlabeled.transfer.detection.score import Scorer, interval_of
from unlabeled.transfer.result import result_of

# the version changes when the same recipe would be scored otherwise
PROTOCOL = {"name": "detect", "version": "1"}
PICTURES, COLUMNS, SIDE = 12, 2, 320  # of the sheet
QUALITY = 85


def write_result(output: Path, told: dict[str, Any], engine: Engine, scorer: Scorer) -> None:
    """Write `result.json`, `result.md`, `detections.json` and `detections.jpg`; `told` is the recipe as JSON. Raises
    OSError."""
    assert scorer.latest is not None
    scores = {**scorer.latest, "interval": interval_of(scorer.judged, scorer.classes)}
    report = page(result_of(told, engine, scorer, scores, PROTOCOL))
    write_text(output / "result.json", as_json.write(report, compact=True))
    write_text(output / "result.md", markdown.write(report))
    write_text(output / "detections.json", json.dumps(list(_rows(scorer))) + "\n")
    draw(output / PICTURE, scorer)


def _rows(scorer: Scorer) -> Iterator[dict[str, Any]]:
    """COCO's results, with names of files and classes in the place of numbers."""
    for one in scorer.judged:
        name = scorer.source.key(one.number)
        for box, score, number in zip(*(column.tolist() for column in one.found), strict=True):
            left, top, right, bottom = (round(side, 2) for side in box)
            size = [left, top, round(right - left, 2), round(bottom - top, 2)]
            yield {"file": name, "category": scorer.classes[number], "bbox": size, "score": round(score, 4)}


def draw(file: Path, scorer: Scorer) -> None:
    """Write some of the pictures, evenly chosen, with their boxes and with those that were found."""
    import torchvision

    chosen = np.unique(np.linspace(0, len(scorer.judged) - 1, min(PICTURES, len(scorer.judged))).astype(int))
    tiles = [tile for tile in (_tile(scorer, scorer.judged[place]) for place in chosen) if tile is not None]
    tiles += [torch.full_like(tiles[0], 255)] * (-len(tiles) % COLUMNS) if tiles else []
    rows = [torch.cat(tiles[i : i + COLUMNS], dim=-1) for i in range(0, len(tiles), COLUMNS)]
    if rows:
        with replacing(file) as temporary:
            temporary.write_bytes(torchvision.io.encode_jpeg(torch.cat(rows, dim=-2), QUALITY).numpy().tobytes())


def _tile(scorer: Scorer, one: Judged) -> torch.Tensor | None:
    """A picture as it is and as it was found; None where it cannot be read any more."""
    sure = one.found.scores >= SHOWN
    names = [scorer.classes[number] for number in one.found.classes[sure].tolist()]
    labels = [f"{name} {score:.2f}" for name, score in zip(names, one.found.scores[sure].tolist(), strict=True)]
    try:
        return beside(scorer.source.image(one.number), one.truth.corners, one.found.boxes[sure], labels, SIDE)
    except BadSample:
        return None
