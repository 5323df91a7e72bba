"""Units of patches hidden at random, a fixed number of them."""

from __future__ import annotations

from typing import ClassVar, Literal

import numpy as np
import torch
from pydantic import BaseModel, Field

from unlabeled.data.masks.place import ALONE, Place
from unlabeled.nn.patches import PatchMask

Grid = tuple[int, int]


class RandomMask(BaseModel, frozen=True, extra="forbid"):
    """Hide a fixed share of square units, drawn uniformly (MAE section 3; SimMIM with a larger unit)."""

    equal_counts: ClassVar[bool] = True
    name: Literal["random"] = "random"
    ratio: float = Field(0.75, gt=0, lt=1, description="share of the units to hide, between 0 and 1")
    unit: int | None = Field(None, ge=1, description="side of a unit, pixels; null = one patch")

    def check(self, size: Grid, patch: int) -> None:
        """Raise ValueError when units, patches and crop do not fit, or nothing would be hidden or visible."""
        unit = self.unit or patch
        if unit % patch:
            raise ValueError(f"a mask unit of {unit} pixels is not a multiple of the patch size {patch}")
        if any(side % unit for side in size):
            raise ValueError(f"a mask unit of {unit} pixels does not divide a crop of {size[0]}x{size[1]}")
        kept = self.visible(size[0] // unit * (size[1] // unit))
        if kept < 1:
            raise ValueError(f"a mask ratio of {self.ratio} hides every unit of a {size[0]}x{size[1]} crop")

    def visible(self, units: int) -> int:
        """How many of `units` stay visible: MAE's floor(N (1 - ratio))."""
        return int(units * (1 - self.ratio))

    def draw(self, rng: np.random.Generator, grid: Grid, patch: int, place: Place = ALONE) -> PatchMask:
        """A mask over a grid of (rows, columns) patches: hidden [N], keep [K], drop [M]."""
        factor = (self.unit or patch) // patch
        rows, columns = grid[0] // factor, grid[1] // factor
        # argsort of uniform noise, as the official code: streams of `random` are stable between numpy releases
        order = np.argsort(rng.random(rows * columns), kind="stable")
        keep, drop = np.split(order, [self.visible(len(order))])
        keep, drop = (_patches_of(units, columns, factor) for units in (keep, drop))
        hidden = np.zeros(grid[0] * grid[1], dtype=bool)
        hidden[drop] = True
        return PatchMask(torch.from_numpy(hidden), torch.from_numpy(keep), torch.from_numpy(drop))


def _patches_of(units: np.ndarray, columns: int, factor: int) -> np.ndarray:
    """Patch numbers covered by units numbered row-major over `columns`; each unit is factor x factor patches."""
    if factor == 1:
        return units
    row, column = np.divmod(units, columns)
    offsets = np.arange(factor)
    rows = (row[:, None] * factor + offsets)[:, :, None]
    cols = (column[:, None] * factor + offsets)[:, None, :]
    return (rows * (columns * factor) + cols).reshape(-1)
