"""DINOv2's mask: shares of a batch's crops, spread evenly, in rectangles."""

from __future__ import annotations

from typing import Literal

import numpy as np
from pydantic import Field

from unlabeled.data.mask import ALONE, Grid, Mask, Place
from unlabeled.data.masking import (
    ASPECT,
    Aspect,
    Shares,
    check_grid,
    dinov2_largest,
    hide_blocks,
    only_hidden,
    topped_up,
)
from unlabeled.nn.patches import PatchMask

DINOV2_SMALLEST = 4


class Config(Mask, frozen=True, extra="forbid"):
    """DINOv2's and DINOv3's mask (official `data/collate.py` and `masking.py`), shared out over the global batch.

    A fixed share of the batch's crops is masked. Their ratios are spread evenly: n of them divide [low, high] into n
    equal parts, and each draws from its own. Which crop gets which part, or none, is shuffled by the step. The crops
    counted are those of all views that have a mask.
    """

    name: Literal["stratified_block"] = "stratified_block"
    share: float = Field(0.5, gt=0, le=1, description="share of the batch's crops that are masked, rounded down")
    ratio: Shares = Field((0.1, 0.5), description="share of the patches to hide in those, from and to")
    aspect: Aspect = ASPECT
    exact: bool = Field(
        False,
        description="a crop hides exactly the upper end of its part, patches at random where rectangles fall short "
        "of it (DINOv3); false = a ratio drawn from its part, or less",
    )

    def check(self, size: Grid, patch: int) -> None:
        check_grid(size, patch)

    def draw(self, rng: np.random.Generator, grid: Grid, patch: int, place: Place = ALONE) -> PatchMask:
        """A mask over a grid of (rows, columns) patches: hidden [N]."""
        within = rng.random()
        target = int(grid[0] * grid[1] * self._ratio(place, 1.0 if self.exact else within))
        hidden = hide_blocks(rng, grid, target, DINOV2_SMALLEST, dinov2_largest(grid), self.aspect)
        return only_hidden(topped_up(rng, hidden, target) if self.exact else hidden)

    def _ratio(self, place: Place, within: float) -> float:
        slot, masked = place.slot(), int(self.share * place.slots)
        if slot >= masked:
            return 0.0
        low, high = self.ratio
        return low + (slot + within) / masked * (high - low)
