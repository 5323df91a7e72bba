"""Images and maps as tiles of one PNG: a column for each image."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from unlabeled.errors import UserError
from unlabeled.files import replacing
from unlabeled.train.pictures import GAP, sheet

TILE = 96  # short side of a tile, pixels
# colours of shares 0, 1/8, ..., 1 of a map's range: black, violet, orange, yellow
HEAT = (
    *((0, 0, 4), (31, 12, 72), (85, 15, 109), (136, 34, 106), (186, 54, 85)),
    *((227, 89, 51), (249, 140, 10), (249, 201, 50), (252, 255, 164)),
)


def tile_of(shape: tuple[int, int]) -> tuple[int, int]:
    """(height, width) of a tile for images of another size."""
    short = min(shape)
    return round(TILE * shape[0] / short), round(TILE * shape[1] / short)


def images(pixels: Tensor, tile: tuple[int, int]) -> Tensor:
    """uint8 images [B, C, H, W] as tiles [B, 3, h, w]: the first three channels, or the first one as grey."""
    shown = pixels[:, :3] if pixels.shape[1] >= 3 else pixels[:, :1].expand(-1, 3, -1, -1)
    if pixels.shape[-1] < tile[1]:
        return F.interpolate(shown, size=tile, mode="nearest-exact")
    return F.interpolate(shown.float(), size=tile, mode="bilinear", antialias=True).round().clamp(0, 255).byte()


def heat(maps: Tensor, tile: tuple[int, int]) -> Tensor:
    """Maps [B, M, rows, columns] as tiles [B, M, 3, h, w], each in colours from its least to its largest value."""
    values = maps.detach().float().cpu()
    if not torch.isfinite(values).all():
        raise UserError("the encoder's output is not finite. Take an earlier checkpoint or export.")
    low, high = values.amin((2, 3), keepdim=True), values.amax((2, 3), keepdim=True)
    shares = torch.where(high > low, (values - low) / (high - low), 0.0).numpy()
    places = np.linspace(0, 1, len(HEAT))
    channels = [np.interp(shares, places, [colour[c] for colour in HEAT]).round() for c in range(3)]
    return cells(torch.from_numpy(np.stack(channels, axis=-1)).to(torch.uint8), tile)


def cells(colours: Tensor, tile: tuple[int, int]) -> Tensor:
    """Colours of positions [B, M, rows, columns, 3] as tiles [B, M, 3, h, w]."""
    flat = colours.flatten(0, 1).movedim(-1, 1)
    return F.interpolate(flat, size=tile, mode="nearest-exact").unflatten(0, colours.shape[:2])


def write(file: Path, rows: Tensor) -> None:
    """Write tiles [B, rows, 3, h, w] as a PNG whole or not at all."""
    import torchvision

    file.parent.mkdir(parents=True, exist_ok=True)
    with replacing(file) as temporary:
        torchvision.io.write_png(sheet(rows), str(temporary))


def read_cells(file: Path, row: int, shape: tuple[int, int, int], tile: tuple[int, int]) -> Tensor | None:
    """The colours [B, rows, columns, 3] that `cells` put into a row of tiles; None where they cannot be read.

    `shape` is (B, rows, columns).
    """
    import torchvision

    try:
        drawn = torchvision.io.decode_image(str(file), torchvision.io.ImageReadMode.RGB)
    except (RuntimeError, OSError):
        return None
    height, width = tile[0] + 2 * GAP, tile[1] + 2 * GAP
    if drawn.shape[1] % height or drawn.shape[2] != shape[0] * width or drawn.shape[1] < (row + 1) * height:
        return None
    band = drawn[:, row * height : (row + 1) * height].unflatten(2, (shape[0], width)).permute(2, 0, 1, 3)
    inner = band[:, :, GAP : GAP + tile[0], GAP : GAP + tile[1]]
    return F.interpolate(inner, size=shape[1:], mode="nearest-exact").movedim(1, -1)
