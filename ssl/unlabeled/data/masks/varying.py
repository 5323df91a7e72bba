"""Masks that hide another number of patches in every crop: iBOT's and DINOv2's."""

from __future__ import annotations

import math
from typing import Annotated, ClassVar, Literal

import numpy as np
import torch
from pydantic import BaseModel, Field, model_validator

from unlabeled.data.masks.blocks import ASPECT, Aspect, check_grid, dinov2_largest, hide_blocks, ibot_smallest
from unlabeled.data.masks.place import ALONE, Place
from unlabeled.data.masks.uniform import Grid
from unlabeled.nn.patches import PatchMask

Share = Annotated[float, Field(ge=0, le=1)]
DINOV2_SMALLEST = 4


class BlockMask(BaseModel, frozen=True, extra="forbid"):
    """iBOT's mask (official `loader.py`): a ratio is drawn for every crop, then hidden in blocks or at random."""

    equal_counts: ClassVar[bool] = False
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
    def _fits(self) -> BlockMask:
        if len(self.ratios) != len(self.variances):
            raise ValueError(
                f"expected as many variances as ratios, found {len(self.variances)} and {len(self.ratios)}"
            )
        for ratio, variance in zip(self.ratios, self.variances, strict=True):
            if ratio - variance < 0 or ratio + variance > 1:
                raise ValueError(f"ratio {ratio} with variance {variance} leaves [0, 1]. Lower the variance.")
        return self

    def check(self, size: Grid, patch: int) -> None:
        """Raise ValueError when blocks do not fit the crop."""
        check_grid(size, patch)

    def draw(self, rng: np.random.Generator, grid: Grid, patch: int, place: Place = ALONE) -> PatchMask:
        """A mask over a grid of (rows, columns) patches: hidden [N]. Blocks may fall short of the ratio drawn."""
        pick, within = rng.random(2)
        which = int(pick * len(self.ratios))
        ratio = self.ratios[which] + (2 * within - 1) * self.variances[which]
        target = ratio * grid[0] * grid[1]
        if self.shape == "random":
            return _without_indices(np.argsort(rng.random(grid[0] * grid[1]), kind="stable") < int(target))
        return _without_indices(hide_blocks(rng, grid, target, ibot_smallest(grid), math.inf, self.aspect))


class StratifiedBlockMask(BaseModel, frozen=True, extra="forbid"):
    """DINOv2's mask (official `data/collate.py` and `masking.py`), shared out over the global batch.

    A fixed share of the batch's crops is masked. Their ratios are spread evenly: n of them divide [low, high] into n
    equal parts, and each draws from its own. Which crop gets which part, or none, is shuffled by the step. The crops
    counted are those of all views that have a mask.
    """

    equal_counts: ClassVar[bool] = False
    name: Literal["stratified_block"] = "stratified_block"
    share: float = Field(0.5, gt=0, le=1, description="share of the batch's crops that are masked, rounded down")
    ratio: tuple[Share, Share] = Field((0.1, 0.5), description="share of the patches to hide in those, from and to")
    aspect: Aspect = ASPECT

    @model_validator(mode="after")
    def _ordered(self) -> StratifiedBlockMask:
        if self.ratio[0] > self.ratio[1]:
            raise ValueError(f"ratio: expected [low, high], found {list(self.ratio)}")
        return self

    def check(self, size: Grid, patch: int) -> None:
        """Raise ValueError when blocks do not fit the crop."""
        check_grid(size, patch)

    def draw(self, rng: np.random.Generator, grid: Grid, patch: int, place: Place = ALONE) -> PatchMask:
        """A mask over a grid of (rows, columns) patches: hidden [N]. Blocks may fall short of the ratio drawn."""
        patches = grid[0] * grid[1]
        target = int(patches * self._ratio(place, rng.random()))
        return _without_indices(hide_blocks(rng, grid, target, DINOV2_SMALLEST, dinov2_largest(grid), self.aspect))

    def _ratio(self, place: Place, within: float) -> float:
        slot, masked = place.slot(), int(self.share * place.slots)
        if slot >= masked:
            return 0.0
        low, high = self.ratio
        return low + (slot + within) / masked * (high - low)


def _without_indices(hidden: np.ndarray) -> PatchMask:
    return PatchMask(torch.from_numpy(hidden.reshape(-1)), None, None)
