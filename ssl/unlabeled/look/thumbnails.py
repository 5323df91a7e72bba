"""Thumbnails of many images in one JPEG."""

from __future__ import annotations

import math
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from unlabeled.data.view.views import resize
from unlabeled.files import replacing

# sides in pixels, whole blocks of JPEG; the largest is taken whose sheet has at most so many pixels
SIDES, MOST_PIXELS = (96, 64, 48, 32), 10_500_000
MOST_BYTES = 4_000_000
QUALITIES = (85, 75, 65, 55, 45, 35)
GREY = 127  # beside an image that is no square


class Thumbs(NamedTuple):
    """Thumbnails uint8 [n, 3, side, side], and how many stand in a row of their sheet."""

    images: Tensor
    columns: int


def side_for(count: int) -> int:
    """The side of the thumbnails of so many images, pixels."""
    return next((side for side in SIDES if count * side * side <= MOST_PIXELS), SIDES[-1])


def columns_for(count: int) -> int:
    """How many stand in a row, so that the sheet is a square."""
    return max(1, math.ceil(math.sqrt(count)))


def thumbnail(image: Tensor, side: int) -> Tensor:
    """A uint8 image [C, H, W] within a grey square [3, side, side], its aspect kept: the first three channels, or the
    first one as grey."""
    image = image[:3] if image.shape[0] >= 3 else image[:1].expand(3, -1, -1)
    scale = side / max(image.shape[1:])
    height, width = (max(1, round(length * scale)) for length in image.shape[1:])
    small = resize(image, (height, width), "bilinear")
    above, left = (side - height) // 2, (side - width) // 2
    return F.pad(small, (left, side - width - left, above, side - height - above), value=GREY)


def tiled(thumbs: Thumbs) -> Tensor:
    """The sheet uint8 [3, height, width], row by row; places that are left over are grey."""
    images, columns = thumbs
    rows = -(-len(images) // columns)
    missing = rows * columns - len(images)
    filled = torch.cat([images, images.new_full((missing, *images.shape[1:]), GREY)])
    return filled.unflatten(0, (rows, columns)).permute(2, 0, 3, 1, 4).flatten(3, 4).flatten(1, 2)


def write_sheet(file: Path, thumbs: Thumbs) -> None:
    """Write the sheet as a JPEG of at most MOST_BYTES where the lowest quality allows it."""
    import torchvision

    drawn = tiled(thumbs)
    for quality in QUALITIES:
        encoded = torchvision.io.encode_jpeg(drawn, quality)
        if len(encoded) <= MOST_BYTES:
            break
    with replacing(file) as temporary:
        temporary.write_bytes(encoded.numpy().tobytes())
