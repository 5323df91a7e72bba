"""Thumbnails in one JPEG, for pages."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from unlabeled.files import replacing

GREY = 127  # around images that are no squares
QUALITY = 90


def write_sheet(file: Path, images: Sequence[Tensor], columns: int, side: int) -> dict[str, Any]:
    """Write uint8 images [C, H, W], at least one, row by row; returns the fields of a `Sheet` by name. Raises
    OSError."""
    import torchvision

    columns = min(columns, len(images))
    tiles = torch.stack([thumbnail(image, side) for image in images])
    blank = tiles.new_full((-len(images) % columns, 3, side, side), GREY)
    rows = torch.cat([tiles, blank]).unflatten(0, (-1, columns))
    whole = rows.permute(2, 0, 3, 1, 4).flatten(3, 4).flatten(1, 2)
    data = torchvision.io.encode_jpeg(whole, quality=QUALITY)
    with replacing(file) as temporary:
        temporary.write_bytes(data.numpy().tobytes())
    return {"file": file.name, "side": side, "columns": columns, "images": len(images)}


def thumbnail(image: Tensor, side: int) -> Tensor:
    """A uint8 image [C, H, W] fitted into a square [3, side, side], its sides in proportion; the first three channels,
    or the first one as grey."""
    colours = (image[:3] if len(image) >= 3 else image[:1].expand(3, -1, -1)).float()
    scale = side / max(image.shape[-2:])
    size = [max(1, round(length * scale)) for length in image.shape[-2:]]
    if scale > 2:  # pixels that are seen as such, instead of a blur
        fitted = F.interpolate(colours[None], size, mode="nearest-exact")[0]
    else:
        fitted = F.interpolate(colours[None], size, mode="bilinear", antialias=True, align_corners=False)[0]
    canvas = torch.full((3, side, side), GREY, dtype=torch.uint8)
    top, left = (side - size[0]) // 2, (side - size[1]) // 2
    canvas[:, top : top + size[0], left : left + size[1]] = fitted.round().clamp(0, 255).to(torch.uint8)
    return canvas
