"""The complement of another mask."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

import numpy as np
from pydantic import Field, field_validator
from typing_extensions import Self

from unlabeled.data.mask import ALONE, MASKS, Grid, Mask, Place, Rounding
from unlabeled.data.masks.random import Config as RandomMask
from unlabeled.nn.patches import PatchMask
from unlabeled.registry import ByFile


class Config(Mask, frozen=True, extra="forbid"):
    """Keep exactly what another mask hides, and hide the rest."""

    equal_counts: ClassVar[bool] = True
    name: Literal["inverse"] = "inverse"
    mask: Annotated[Mask, ByFile(MASKS.package, Mask, without=("inverse",))] = Field(
        RandomMask(), description="the mask to turn around"
    )

    @field_validator("mask")
    @classmethod
    def _equal_counts(cls, mask: Mask) -> Mask:
        if not mask.equal_counts:
            raise ValueError(
                f"expected a mask that hides as many patches in every crop, found {mask.name}. Use "
                "random or fixed_block."
            )
        return mask

    @property
    def hidden_share(self) -> float | None:
        share = self.mask.hidden_share
        return None if share is None else 1 - share

    def check(self, size: Grid, patch: int) -> None:
        self.mask.check(size, patch)

    @property
    def steady(self) -> bool:
        return self.mask.steady

    def rounded(self, rounding: Rounding) -> Self:
        return self.model_copy(update={"mask": self.mask.rounded(rounding)})

    def draw(self, rng: np.random.Generator, grid: Grid, patch: int, place: Place = ALONE) -> PatchMask:
        mask = self.mask.draw(rng, grid, patch, place)
        keep, drop = mask.indices()
        return PatchMask(~mask.hidden, drop, keep)
