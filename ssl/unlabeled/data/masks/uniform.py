"""Units of patches hidden at random, a fixed number of them."""

from __future__ import annotations

import math
from typing import ClassVar, Literal

import numpy as np
import torch
from pydantic import BaseModel, Field
from typing_extensions import Self

from unlabeled.data.masks.place import ALONE, Place
from unlabeled.nn.patches import PatchMask

Grid = tuple[int, int]
Rounding = Literal["floor_visible", "ceil_hidden", "floor_hidden"]


def hidden_count(units: int, ratio: float, rounding: Rounding | None) -> int:
    """How many of `units` a mask of a fixed ratio hides. Methods round differently, and by the floats they multiply.

    Args:
        units: N, how many there are.
        ratio: r, share to hide.
        rounding: `floor_visible` keeps floor(N (1 - r)) (MAE, also when None), `ceil_hidden` hides ceil(N r) (SimMIM's
            `MaskGenerator`), `floor_hidden` hides floor(N r) (random masks of iBOT).
    """
    if rounding == "ceil_hidden":
        return math.ceil(units * ratio)
    return int(units * ratio) if rounding == "floor_hidden" else units - int(units * (1 - ratio))


class FixedMask(BaseModel, frozen=True, extra="forbid"):
    """A mask that hides as many units in every crop."""

    equal_counts: ClassVar[bool] = True
    ratio: float = Field(0.75, gt=0, lt=1, description="share of the units to hide, between 0 and 1")
    rounding: Rounding | None = Field(
        None,
        description="a share of N units that is no whole number: keep floor(N (1 - ratio)) (floor_visible: MAE), hide "
        "ceil(N ratio) (ceil_hidden: SimMIM) or floor(N ratio) (floor_hidden: iBOT); null = the method's own",
    )

    def hidden(self, units: int) -> int:
        """How many of `units` are hidden."""
        return hidden_count(units, self.ratio, self.rounding)

    def rounded(self, rounding: Rounding) -> Self:
        """The same mask by a method's own rounding, where its recipe leaves that open."""
        return self if self.rounding else self.model_copy(update={"rounding": rounding})

    def must_leave_both(self, units: int, size: Grid) -> None:
        """Raise ValueError when all units of a crop would be hidden, or none."""
        hidden = self.hidden(units)
        if not 0 < hidden < units:
            share = "every unit" if hidden else "no unit"
            raise ValueError(
                f"a mask ratio of {self.ratio} hides {share} of a {size[0]}x{size[1]} crop, which has {units}. "
                "Choose a ratio nearer to 0.5, a larger crop or smaller units"
            )


class RandomMask(FixedMask, frozen=True, extra="forbid"):
    """Hide a fixed share of square units, drawn uniformly (MAE section 3; SimMIM with a larger unit)."""

    name: Literal["random"] = "random"
    unit: int | None = Field(None, ge=1, description="side of a unit, pixels; null = one patch")

    def check(self, size: Grid, patch: int) -> None:
        """Raise ValueError when units, patches and crop do not fit, or nothing would be hidden or visible."""
        unit = self.unit or patch
        if unit % patch:
            raise ValueError(f"a mask unit of {unit} pixels is not a multiple of the patch size {patch}")
        if any(side % unit for side in size):
            raise ValueError(f"a mask unit of {unit} pixels does not divide a crop of {size[0]}x{size[1]}")
        self.must_leave_both(size[0] // unit * (size[1] // unit), size)

    def draw(self, rng: np.random.Generator, grid: Grid, patch: int, place: Place = ALONE) -> PatchMask:
        """A mask over a grid of (rows, columns) patches: hidden [N], keep [K], drop [M]."""
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
