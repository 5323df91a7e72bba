"""The complement of another mask."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

import numpy as np
from pydantic import BaseModel, Field

from unlabeled.data.masks.fixed import FixedBlockMask
from unlabeled.data.masks.place import ALONE, Place
from unlabeled.data.masks.uniform import Grid, RandomMask, Rounding
from unlabeled.nn.patches import PatchMask

Inverted = Annotated[RandomMask | FixedBlockMask, Field(discriminator="name")]


class InverseMask(BaseModel, frozen=True, extra="forbid"):
    """Keep exactly what another mask hides, and hide the rest."""

    equal_counts: ClassVar[bool] = True
    name: Literal["inverse"] = "inverse"
    mask: Inverted = Field(RandomMask(), description="the mask to turn around")

    def check(self, size: Grid, patch: int) -> None:
        """Raise ValueError when the inner mask does not fit the crop."""
        self.mask.check(size, patch)

    def rounded(self, rounding: Rounding) -> InverseMask:
        """The same mask by a method's own rounding, where its recipe leaves that open."""
        return self.model_copy(update={"mask": self.mask.rounded(rounding)})

    def draw(self, rng: np.random.Generator, grid: Grid, patch: int, place: Place = ALONE) -> PatchMask:
        """A mask over a grid of (rows, columns) patches: hidden [N], keep [K], drop [M]."""
        hidden, keep, drop = self.mask.draw(rng, grid, patch, place)
        return PatchMask(~hidden, drop, keep)
