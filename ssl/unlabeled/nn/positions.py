"""Position embeddings over a grid of patches, as tables [rows * columns, D]."""

from __future__ import annotations

from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

Grid = tuple[int, int]
Interpolation = Literal["size", "scale"]


def sincos_2d(width: int, grid: Grid, rows_first: bool = False) -> Tensor:
    """Fixed 2-D sine-cosine table [rows * columns, width], float64.

    Channels are [sin(x w), cos(x w), sin(y w), cos(y w)] with the column x first and the row y second, raw integer
    coordinates and w_k = 10000^(-k / (width / 4)) (MAE, official `util/pos_embed.py`). With `rows_first` the row comes
    first (MoCo v3, official `vits.py`). Raises ValueError where `width` is not a multiple of 4.
    """
    if width % 4:
        raise ValueError(f"a sin-cos table needs a width that is a multiple of 4, found {width}")
    omega = 10000.0 ** (-torch.arange(width // 4, dtype=torch.float64) / (width // 4))
    y, x = torch.meshgrid(*(torch.arange(n, dtype=torch.float64) for n in grid), indexing="ij")
    first, second = (axis.reshape(-1, 1) * omega for axis in ((y, x) if rows_first else (x, y)))
    return torch.cat([first.sin(), first.cos(), second.sin(), second.cos()], dim=1)


def with_prefix(table: Tensor, prefix: int) -> Tensor:
    """Put `prefix` zero rows (class token, registers) in front of a table: [1, prefix + N, D], float32."""
    return torch.cat([table.new_zeros(prefix, table.shape[1]), table]).float().unsqueeze(0)


def resample(table: Tensor, old: Grid, new: Grid, by: Interpolation = "size") -> Tensor:
    """Resample a table [1, N, D] to another grid by bicubic interpolation: align_corners False, no antialiasing.

    With `size` the new grid spans the old one (MAE, official `interpolate_pos_embed`); `scale` uses the factor
    (new + 0.1) / old, which shifts every point a little (DINO, iBOT, DINOv2: official `interpolate_pos_encoding`).
    """
    if old == new:
        return table
    image = table.unflatten(1, old).permute(0, 3, 1, 2).float()
    factors = [(target + 0.1) / source for source, target in zip(old, new, strict=True)]
    extent: dict[str, Any] = {"size": new} if by == "size" else {"scale_factor": factors}
    image = F.interpolate(image, **extent, mode="bicubic", align_corners=False)
    return image.permute(0, 2, 3, 1).flatten(1, 2).to(table.dtype)
