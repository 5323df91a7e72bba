"""Units of patches hidden at random, a fixed number of them."""

from __future__ import annotations

import math
from typing import Literal

import numpy as np
import torch
from pydantic import Field

from unlabeled.data.mask import ALONE, Grid, Place
from unlabeled.data.masking import FixedMask
from unlabeled.nn.patches import PatchMask


class Config(FixedMask, frozen=True, extra="forbid"):
    """Hide a fixed share of square units, drawn uniformly (MAE section 3; SimMIM with a larger unit)."""

    name: Literal["random"] = "random"
    unit: int | None = Field(None, ge=1, description="side of a unit, pixels; null = one patch")

    def check(self, size: Grid, patch: int) -> None:
        unit = self.unit or patch
        if unit % patch:
            raise ValueError(
                f"a mask unit of {unit} pixels is not a multiple of the patch size {patch}. Set unit={patch}"
            )
        if any(side % unit for side in size):
            raise ValueError(
                f"a mask unit of {unit} pixels does not divide a crop of {size[0]}x{size[1]}: set one that does"
            )
        self.must_leave_both(size[0] // unit * (size[1] // unit), size)

    def patch(self, patch: int, smallest: int) -> int:
        common = math.gcd(self.unit or patch, patch)
        return smallest if common % smallest else common

    def describe(self, size: Grid, patch: int) -> str:
        unit = self.unit or patch
        units = size[0] // unit * (size[1] // unit)
        return f"hides {self.hidden(units)} of {units} units of {unit} px"

    def draw(self, rng: np.random.Generator, grid: Grid, patch: int, place: Place = ALONE) -> PatchMask:
        factor = (self.unit or patch) // patch
        rows, columns = grid[0] // factor, grid[1] // factor
        # argsort of uniform noise, as the official code: streams of `random` are stable between numpy releases
        order = np.argsort(rng.random(rows * columns), kind="stable")
        keep, drop = np.split(order, [len(order) - self.hidden(len(order))])
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
