"""iBOT's mask: another number of patches in every crop, in rectangles or at random."""

from __future__ import annotations

import math
from typing import Literal

import numpy as np
from pydantic import Field, model_validator

from unlabeled.data.mask import ALONE, Grid, Mask, Place
from unlabeled.data.masking import ASPECT, Aspect, Share, check_grid, hide_blocks, ibot_smallest, only_hidden
from unlabeled.nn.patches import PatchMask


class Config(Mask, frozen=True, extra="forbid"):
    """iBOT's mask (official `loader.py`): a ratio is drawn for every crop, then hidden in blocks or at random."""

    name: Literal["block"] = "block"
    ratios: tuple[Share, ...] = Field(
        (0.0, 0.3), min_length=1, description="centres of the share to hide; one is picked for every crop"
    )
    variances: tuple[Share, ...] = Field(
        (0.0, 0.2), min_length=1, description="the share is uniform within centre plus or minus this, one per centre"
    )
    shape: Literal["block", "random"] = Field("block", description="hide rectangles, or patches at random")
    aspect: Aspect = ASPECT

    @model_validator(mode="after")
    def _fits(self) -> Config:
        if len(self.ratios) != len(self.variances):
            raise ValueError(
                f"expected as many variances as ratios, found {len(self.variances)} and {len(self.ratios)}"
            )
        for ratio, variance in zip(self.ratios, self.variances, strict=True):
            if ratio - variance < 0 or ratio + variance > 1:
                raise ValueError(f"ratio {ratio} with variance {variance} leaves [0, 1]. Lower the variance.")
        return self

    def check(self, size: Grid, patch: int) -> None:
        check_grid(size, patch)

    def draw(self, rng: np.random.Generator, grid: Grid, patch: int, place: Place = ALONE) -> PatchMask:
        """A mask over a grid of (rows, columns) patches: hidden [N]. Blocks may fall short of the ratio drawn."""
        pick, within = rng.random(2)
        which = int(pick * len(self.ratios))
        ratio = self.ratios[which] + (2 * within - 1) * self.variances[which]
        target = ratio * grid[0] * grid[1]
        if self.shape == "random":
            return only_hidden(np.argsort(rng.random(grid[0] * grid[1]), kind="stable") < int(target))
        return only_hidden(hide_blocks(rng, grid, target, ibot_smallest(grid), math.inf, self.aspect))
