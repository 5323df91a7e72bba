"""Blocks of patches, the same number in every crop."""

from __future__ import annotations

import math
from typing import Literal

import numpy as np
import torch
from pydantic import Field

from unlabeled.data.mask import ALONE, Grid, Place
from unlabeled.data.masking import ASPECT, Aspect, FixedMask, check_grid, hide_blocks, ibot_smallest
from unlabeled.nn.patches import PatchMask


class Config(FixedMask, frozen=True, extra="forbid"):
    """Hide a fixed share in blocks (BEiT section 2.3); what the blocks leave missing is topped up at random."""

    name: Literal["fixed_block"] = "fixed_block"
    ratio: float = Field(0.4, gt=0, lt=1, description="share of the patches to hide, between 0 and 1")
    aspect: Aspect = ASPECT

    def check(self, size: Grid, patch: int) -> None:
        check_grid(size, patch)
        self.must_leave_both(size[0] // patch * (size[1] // patch), size)

    def draw(self, rng: np.random.Generator, grid: Grid, patch: int, place: Place = ALONE) -> PatchMask:
        """A mask over a grid of (rows, columns) patches: hidden [N], keep [K], drop [M], both in random order."""
        patches = grid[0] * grid[1]
        target = self.hidden(patches)
        hidden = hide_blocks(rng, grid, target, ibot_smallest(grid), math.inf, self.aspect).reshape(-1)
        order = np.argsort(rng.random(patches), kind="stable")
        hidden[order[~hidden[order]][: target - int(hidden.sum())]] = True
        keep, drop = order[~hidden[order]], order[hidden[order]]
        return PatchMask(torch.from_numpy(hidden), torch.from_numpy(keep), torch.from_numpy(drop))
