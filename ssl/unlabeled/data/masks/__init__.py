"""Which patches to hide. Masks are drawn per sample in the worker, from the sample's own generator.

Every mask has `check(size, patch)`, which raises ValueError when it does not fit a crop; `draw(rng, grid, patch,
place)`; and `equal_counts`, whether all crops hide the same number, so that `keep` and `drop` exist.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from unlabeled.data.masks.fixed import FixedBlockMask
from unlabeled.data.masks.inverse import InverseMask
from unlabeled.data.masks.place import Place
from unlabeled.data.masks.uniform import FixedMask, Grid, RandomMask, Rounding
from unlabeled.data.masks.varying import BlockMask, StratifiedBlockMask

Mask = Annotated[
    RandomMask | BlockMask | StratifiedBlockMask | FixedBlockMask | InverseMask, Field(discriminator="name")
]


def rounded(mask: Mask | None, rounding: Rounding) -> Mask | None:
    """A mask whose share is rounded as a method does, where its recipe leaves that open and the mask rounds at all."""
    return mask.rounded(rounding) if isinstance(mask, RandomMask | FixedBlockMask | InverseMask) else mask


__all__ = [
    "BlockMask",
    "FixedBlockMask",
    "FixedMask",
    "Grid",
    "InverseMask",
    "Mask",
    "Place",
    "RandomMask",
    "Rounding",
    "StratifiedBlockMask",
    "rounded",
]
