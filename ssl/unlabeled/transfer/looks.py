"""Pictures that a fine-tuning leaves for its page: `look/errors.jpg`, `look/where.jpg`, and what they show as JSON."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import BaseModel, Field
from torch import Tensor

from unlabeled.data.batch.loader import Normalize
from unlabeled.errors import first_line
from unlabeled.evaluate.features import CentreCrops
from unlabeled.files import write_text
from unlabeled.look.thumbnails import Thumbs, thumbnail, write_sheet
from unlabeled.text import one_line
from unlabeled.transfer.errors import Chosen, Judged, choose
from unlabeled.transfer.result import Scorer
from unlabeled.transfer.task import ImageTask
from unlabeled.transfer.where import maps, overlay

COLUMNS, SIDE = 8, 128  # of the thumbnails of errors
LARGE = 160  # side of the maps' thumbnails, pixels
TEXT = (
    "Bright parts speak for a class, by gradients of its score (Grad-CAM); each map has a scale of its own. First the "
    "worst errors, with the map of the class that was predicted and that of the right one; then pictures that are "
    "right."
)


class Look(BaseModel, frozen=True, extra="forbid"):
    """The `look:` section of fine-tuning: pictures for the page, made at the end; they change no result."""

    errors: int = Field(
        24, ge=0, le=48, description="wrong pictures of the highest probability that are shown; 0 = no errors at all"
    )
    where: int = Field(
        18,
        ge=0,
        le=48,
        description="pictures on which maps show where the model looks (Grad-CAM): two thirds are the worst errors, "
        "the others are right; 0 = none",
    )

    @property
    def right(self) -> int:
        """How many of `where` are right."""
        return self.where // 3


def write_looks(folder: Path, scorer: Scorer, task: ImageTask, look: Look) -> str:
    """Write the pictures of the scorer's newest outcomes, those of `task`, into a folder; returns a line where that
    fails, else ""."""
    assert scorer.numbers is not None
    try:
        chosen = choose(scorer.outcomes, scorer.numbers, max(look.errors, look.where - look.right), look.right)
        folder.mkdir(exist_ok=True)
        crops = _crops(scorer, [*chosen.worst, *(one for row in chosen.confused for one in row), *chosen.right])
        if look.errors:
            _write_errors(folder, scorer, chosen._replace(worst=chosen.worst[: look.errors]), crops)
        if look.where:
            shown = [*chosen.worst[: look.where - look.right], *chosen.right]
            _write_where(folder, scorer, task, [one for one in shown if one.number in crops], crops)
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
        "sheet": _sheet(folder / "errors.jpg", [crops[n] for n in shown], COLUMNS, SIDE) if shown else None,
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


def _write_where(
    folder: Path, scorer: Scorer, task: ImageTask, shown: Sequence[Judged], crops: dict[int, Tensor]
) -> None:
    how, pictures = scorer.predict, [crops[one.number] for one in shown]
    device = how.accelerator.device
    classes = [torch.tensor([getattr(one, field) for one in shown], device=device) for field in ("predicted", "true")]
    content: dict[str, Any] = {"pictures": [described(scorer, one) for one in shown], "text": TEXT, "failed": None}
    try:
        images = Normalize(how.mean, how.std, device)(torch.stack(pictures).to(device))
        heat = [each.cpu() for each in maps(task, images, classes)]
        rows = zip(pictures, *heat, strict=True)
        tiles = [tile for picture, *two in rows for tile in (picture, *(overlay(picture, one) for one in two))]
        content["sheet"] = _sheet(folder / "where.jpg", tiles, 3, LARGE)
    except Exception as error:  # of a network whose maps cannot be made, or for want of memory
        content["failed"] = one_line(first_line(error))
    write_text(folder / "where.json", json.dumps(content, indent=1) + "\n")


def _sheet(file: Path, images: Sequence[Tensor], columns: int, side: int) -> dict[str, Any]:
    """Write thumbnails of uint8 images [C, H, W]; returns the fields of a `Sheet`, by name."""
    columns = min(columns, len(images))
    write_sheet(file, Thumbs(torch.stack([thumbnail(image, side) for image in images]), columns))
    return {"file": file.name, "side": side, "columns": columns, "images": len(images)}
