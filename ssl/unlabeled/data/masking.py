"""Shared parts of masks: a fixed number of hidden units, and rectangles of patches until enough are hidden (iBOT's and
DINOv2's generator, after BEiT's)."""

from __future__ import annotations

import math
from typing import Annotated, Any, ClassVar

import numpy as np
import torch
from pydantic import AfterValidator, Field
from typing_extensions import Self

from unlabeled.data.mask import Grid, Mask, Rounding
from unlabeled.nn.patches import PatchMask

ATTEMPTS = 10
Share = Annotated[float, Field(ge=0, le=1)]


def _ordered(bounds: tuple[float, float]) -> tuple[float, float]:
    if bounds[0] > bounds[1]:
        raise ValueError(f"expected [low, high], found {list(bounds)}")
    return bounds


Side = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Shares = Annotated[tuple[Share, Share], AfterValidator(_ordered)]
Aspect = Annotated[tuple[Side, Side], AfterValidator(_ordered)]
ASPECT: Any = Field((0.3, 1 / 0.3), description="height over width of a rectangle, from and to, log-uniform")


class FixedMask(Mask, frozen=True, extra="forbid"):
    """A mask that hides as many units in every crop."""

    equal_counts: ClassVar[bool] = True
    ratio: float = Field(0.75, gt=0, lt=1, description="share of the units to hide, between 0 and 1")
    rounding: Rounding | None = Field(
        None,
        description="a share of N units that is no whole number: keep floor(N (1 - ratio)) (floor_visible: MAE) or the "
        "nearest (round_visible: SparK), hide ceil(N ratio) (ceil_hidden: SimMIM) or floor(N ratio) (floor_hidden: "
        "iBOT); null = the method's own",
    )

    @property
    def hidden_share(self) -> float:
        return self.ratio

    def hidden(self, units: int) -> int:
        """Number of `units` that are hidden. Methods differ in rounding and in the floats they multiply."""
        if self.rounding == "ceil_hidden":
            return math.ceil(units * self.ratio)
        if self.rounding == "round_visible":
            return units - round(units * (1 - self.ratio))
        return int(units * self.ratio) if self.rounding == "floor_hidden" else units - int(units * (1 - self.ratio))

    def rounded(self, rounding: Rounding) -> Self:
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


def hide_blocks(
    rng: np.random.Generator, grid: Grid, target: float, smallest: float, largest: float, aspect: Aspect
) -> np.ndarray:
    """Hide rectangles until `target` patches are hidden, or ten attempts in a row fail: never more, often fewer.

    Args:
        rng: the sample's.
        grid: (rows, columns) of patches.
        target: patches to hide, not necessarily whole.
        smallest, largest: area of a rectangle, patches.
        aspect: height over width, from and to.

    Returns:
        [rows, columns] bool, True where hidden.
    """
    hidden = np.zeros(grid, dtype=bool)
    count = 0
    while count < target:
        added = _add_block(rng, hidden, smallest, min(target - count, largest), aspect)
        if not added:
            break
        count += added
    return hidden


def topped_up(rng: np.random.Generator, hidden: np.ndarray, target: int) -> np.ndarray:
    """The same with patches hidden at random until there are `target` (DINOv3, official `masking.py`)."""
    seen = np.flatnonzero(~hidden)
    missing = rng.permutation(seen)[: max(0, target - int(hidden.sum()))]
    found = hidden.copy()
    found.flat[missing] = True
    return found


def _add_block(rng: np.random.Generator, hidden: np.ndarray, smallest: float, room: float, aspect: Aspect) -> int:
    """Hide one rectangle that newly hides at most `room` patches; how many it does, 0 when no attempt fits."""
    rows, columns = hidden.shape
    low, high = np.log(aspect)
    for area, shape, top, left in rng.random((ATTEMPTS, 4)):
        # when there is less room than the smallest area, the bounds are reversed, as in the official code
        patches, ratio = smallest + area * (room - smallest), math.exp(low + shape * (high - low))
        height, width = round(math.sqrt(patches * ratio)), round(math.sqrt(patches / ratio))
        if height < rows and width < columns:
            y, x = int(top * (rows - height + 1)), int(left * (columns - width + 1))
            block = hidden[y : y + height, x : x + width]
            added = block.size - int(block.sum())
            if 0 < added <= room:
                block[:] = True
                return added
    return 0


def ibot_smallest(grid: Grid) -> int:
    """iBOT's smallest area of a rectangle: the square of a third of the shorter side, rounded down."""
    return (min(grid) // 3) ** 2


def dinov2_largest(grid: Grid) -> int:
    """DINOv2's largest area of a rectangle: half the rows, rounded down, times the columns (official `train.py`)."""
    return grid[0] // 2 * grid[1]


def check_grid(size: Grid, patch: int) -> None:
    """Raise ValueError when no rectangle is smaller than the grid both ways."""
    rows, columns = size[0] // patch, size[1] // patch
    if min(rows, columns) < 2:
        raise ValueError(
            f"a block mask needs at least 2x2 patches, found {rows}x{columns} in a crop of {size[0]}x{size[1]} pixels "
            f"with patch size {patch}. Enlarge the crop, or use a mask with name random."
        )


def only_hidden(hidden: np.ndarray) -> PatchMask:
    """A mask without `keep` and `drop`, from hidden [rows, columns]."""
    return PatchMask(torch.from_numpy(hidden.reshape(-1)), None, None)
