"""Pictures that a fine-tuning leaves for its page: `look/errors.jpg`, `look/where.jpg`, and what they show as JSON."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from unlabeled.data.batch.loader import Normalize
from unlabeled.errors import first_line
from unlabeled.evaluate.features import CentreCrops
from unlabeled.files import write_text
from unlabeled.text import one_line
from unlabeled.transfer.errors import Chosen, Judged, choose
from unlabeled.transfer.result import Scorer
from unlabeled.transfer.sheet import write_sheet
from unlabeled.transfer.task import Task
from unlabeled.transfer.where import maps, overlay

COLUMNS, SIDE = 8, 128
LOOKED_AT, LARGE = 12, 160  # of the worst errors; side of their thumbnails, pixels
TEXT = (
    "Bright parts speak for a class, by gradients of its score (Grad-CAM); each map has a scale of its own. First the "
    "worst errors, with the map of the class that was predicted and that of the right one; then pictures that are "
    "right."
)


def write_looks(folder: Path, scorer: Scorer, task: Task) -> str:
    """Write the pictures of the scorer's newest outcomes, those of `task`, into a folder; returns a line where that
    fails, else ""."""
    assert scorer.numbers is not None
    chosen = choose(scorer.outcomes, scorer.numbers)
    try:
        folder.mkdir(exist_ok=True)
        crops = _crops(scorer, [*chosen.worst, *(one for row in chosen.confused for one in row), *chosen.right])
        _write_errors(folder, scorer, chosen, crops)
        _write_where(folder, scorer, task, chosen, crops)
    except Exception as error:  # whatever it is, the results are written
        return f"  errors     not shown: {one_line(first_line(error))}"
    return ""


def _crops(scorer: Scorer, judged: Sequence[Judged]) -> dict[int, Tensor]:
    """The crops that were scored, uint8 [C, H, W], by number; without images that cannot be read any more."""
    how = scorer.predict
    found = CentreCrops(
        scorer.source, np.unique([one.number for one in judged]), how.shape, how.crop_pct, how.interpolation
    )
    read = ((int(number), found[row].pixels) for row, number in enumerate(found.indices))
    return {number: pixels for number, pixels in read if pixels is not None}


def _write_errors(folder: Path, scorer: Scorer, chosen: Chosen, crops: dict[int, Tensor]) -> None:
    wrong = {one.number: one for one in (*chosen.worst, *(one for row in chosen.confused for one in row))}
    shown = [number for number in wrong if number in crops]
    places = {number: place for place, number in enumerate(shown)}

    def placed(judged: Sequence[Judged]) -> list[int]:
        return [places[one.number] for one in judged if one.number in places]

    content = {
        "sheet": write_sheet(folder / "errors.jpg", [crops[n] for n in shown], COLUMNS, SIDE) if shown else None,
        "pictures": [described(scorer, wrong[number]) for number in shown],
        "worst": placed(chosen.worst),
        "confused": [placed(row) for row in chosen.confused],
    }
    write_text(folder / "errors.json", json.dumps(content, indent=1) + "\n")


def described(scorer: Scorer, judged: Judged) -> dict[str, Any]:
    """An image for JSON: the name of its file, its class, the one it is taken for, and the probability of that one."""
    return {
        "file": scorer.source.key(judged.number),
        "true": scorer.classes[judged.true],
        "predicted": scorer.classes[judged.predicted],
        "probability": round(judged.probability, 4),
    }


def _write_where(folder: Path, scorer: Scorer, task: Task, chosen: Chosen, crops: dict[int, Tensor]) -> None:
    shown = [one for one in (*chosen.worst[:LOOKED_AT], *chosen.right) if one.number in crops]
    how, pictures = scorer.predict, [crops[one.number] for one in shown]
    device = how.accelerator.device
    classes = [torch.tensor([getattr(one, field) for one in shown], device=device) for field in ("predicted", "true")]
    content: dict[str, Any] = {"pictures": [described(scorer, one) for one in shown], "text": TEXT, "failed": None}
    try:
        images = Normalize(how.mean, how.std, device)(torch.stack(pictures).to(device))
        heat = [each.cpu() for each in maps(task, images, classes)]
        rows = zip(pictures, *heat, strict=True)
        tiles = [tile for picture, *two in rows for tile in (picture, *(overlay(picture, one) for one in two))]
        content["sheet"] = write_sheet(folder / "where.jpg", tiles, 3, LARGE)
    except Exception as error:  # of a network whose maps cannot be made, or for want of memory
        content["failed"] = one_line(first_line(error))
    write_text(folder / "where.json", json.dumps(content, indent=1) + "\n")
