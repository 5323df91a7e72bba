"""The files of a segmentation's result: scores with their protocol and cost, and pictures of some."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from unlabeled.errors import BadSample
from unlabeled.files import replacing, write_text
from unlabeled.report import as_json, markdown
from unlabeled.train.engine import Engine
from unlabeled.transfer.result import result_of
from unlabeled.transfer.segmentation.drawing import beside
from unlabeled.transfer.segmentation.predicting import Judged
from unlabeled.transfer.segmentation.report import PICTURE, page
from unlabeled.transfer.segmentation.score import Scorer, interval_of

# the version changes when the same recipe would be scored otherwise
PROTOCOL = {"name": "segment", "version": "1"}
SIDE, QUALITY = 256, 85  # of the sheet


def write_result(output: Path, told: dict[str, Any], engine: Engine, scorer: Scorer) -> None:
    """Write `result.json`, `result.md` and `segments.jpg`; `told` is the recipe as JSON. Raises OSError."""
    assert scorer.latest is not None
    scores = {**scorer.latest, "interval": interval_of(scorer.judged)}
    report = page(result_of(told, engine, scorer, scores, PROTOCOL))
    write_text(output / "result.json", as_json.write(report, compact=True))
    write_text(output / "result.md", markdown.write(report))
    draw(output / PICTURE, scorer)


def draw(file: Path, scorer: Scorer) -> None:
    """Write some of the pictures, evenly chosen, beside their masks and the classes that were found."""
    import torchvision

    tiles = [tile for one in scorer.judged if (tile := _tile(scorer, one)) is not None]
    if tiles:
        with replacing(file) as temporary:
            encoded = torchvision.io.encode_jpeg(torch.cat(tiles, dim=-2), QUALITY)
            temporary.write_bytes(encoded.numpy().tobytes())


def _tile(scorer: Scorer, one: Judged) -> Tensor | None:
    """A picture as it is, as its mask says and as it was found; None where it is not shown, or cannot be read."""
    if one.shown is None:
        return None
    try:
        image = scorer.source.image(one.number)
    except BadSample:
        return None
    mask = scorer.source.pixel_labels(one.number, image.shape[-2], image.shape[-1])
    return beside(image, mask, one.shown, len(scorer.classes), SIDE)
