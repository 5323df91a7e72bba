"""Rectangles of patches until enough are hidden: iBOT's and DINOv2's generator, after BEiT's."""

from __future__ import annotations

import math
from typing import Annotated, Any

import numpy as np
import torch
from pydantic import AfterValidator, Field

from unlabeled.nn.patches import PatchMask

ATTEMPTS = 10
Grid = tuple[int, int]
Share = Annotated[float, Field(ge=0, le=1)]


def _ordered(aspect: tuple[float, float]) -> tuple[float, float]:
    if aspect[0] > aspect[1]:
        raise ValueError(f"expected [low, high], found {list(aspect)}")
    return aspect


Side = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Aspect = Annotated[tuple[Side, Side], AfterValidator(_ordered)]
ASPECT: Any = Field((0.3, 1 / 0.3), description="height over width of a rectangle, from and to, log-uniform")


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
