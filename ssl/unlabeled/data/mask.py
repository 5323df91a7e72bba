"""The contract of masks: which patches of a crop to hide. Kinds are the files of `masks/`.

Masks are drawn per sample in the worker, from the sample's own generator.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from functools import lru_cache
from typing import Annotated, ClassVar, Literal, NamedTuple

import numpy as np
from pydantic import BaseModel
from typing_extensions import Self

from unlabeled.nn.patches import PatchMask
from unlabeled.randomness import Stream, stream
from unlabeled.registry import ByFile

Grid = tuple[int, int]
Rounding = Literal["floor_visible", "ceil_hidden", "floor_hidden", "round_visible"]


class Place(NamedTuple):
    """A crop in its global batch. It depends on neither workers, processes nor accumulation."""

    seed: int = 0  # of the recipe
    step: int = 0  # number of the global batch
    row: int = 0  # of its image in the global batch
    batch: int = 1  # rows of the global batch
    crop: int = 0  # its number among the crops of an image that hide patches, over all views
    crops: int = 1  # how many those are

    def after(self, crops: int) -> Place:
        """The place of the same image's crop that many further."""
        return self._replace(crop=self.crop + crops)

    @property
    def slots(self) -> int:
        """Crops of the global batch that hide patches."""
        return self.crops * self.batch

    def slot(self) -> int:
        """Its number among them when they are shuffled: every crop of the batch has another one."""
        return int(_shuffled(self.seed, self.step, self.slots)[self.crop * self.batch + self.row])


ALONE = Place()


@lru_cache(maxsize=8)
def _shuffled(seed: int, step: int, n: int) -> np.ndarray:
    return np.argsort(stream(seed, Stream.SLOT, step).random(n), kind="stable")


class Mask(BaseModel, ABC, frozen=True, extra="forbid"):
    """A mask hides patches of a crop. Its fields are what recipes set; `name` is the name of its file."""

    # whether every crop of a batch hides as many patches, so that `keep` and `drop` exist
    equal_counts: ClassVar[bool] = False
    name: str

    @property
    def steady(self) -> bool:
        """Whether it hides as many patches in one step as in another, where counts are equal."""
        return True

    @property
    def hidden_share(self) -> float | None:
        """The share of the patches that every crop hides, before rounding; None = it varies."""
        return None

    @abstractmethod
    def check(self, size: Grid, patch: int) -> None:
        """Raise ValueError when the mask does not fit a crop of `size` (height, width) and patches of side `patch`,
        pixels."""

    @abstractmethod
    def draw(self, rng: np.random.Generator, grid: Grid, patch: int, place: Place = ALONE) -> PatchMask:
        """Draw a mask over a grid of (rows, columns) patches: hidden [N]; keep [K] and drop [M] with equal counts;
        targets [T, M] where several sets are to be predicted.

        Args:
            rng: the sample's own generator.
            grid: (rows, columns) of patches.
            patch: side of a patch, pixels.
            place: of the crop in its global batch.
        """

    def patch(self, patch: int, smallest: int) -> int:
        """The side of the patches to draw it over, pixels: those of an encoder's tokens, `patch`, or finer ones where
        its own units are finer, of at least `smallest`."""
        return patch

    def describe(self, size: Grid, patch: int) -> str:
        """A short description for a plan; arguments as in `check`."""
        return f"hides patches by a {self.name} mask"

    def rounded(self, rounding: Rounding) -> Self:
        """The same mask with a method's own rounding of its share, where the recipe leaves that open."""
        return self


MASKS = ByFile("unlabeled.data.masks", Mask)
AnyMask = Annotated[Mask, MASKS]


def with_equal_counts() -> str:
    """The names of the masks that hide as many patches in every crop, for errors: `fixed_block, inverse or random`."""
    *names, last = (name for name, kind in MASKS.kinds().items() if getattr(kind, "equal_counts", False))
    return f"{', '.join(names)} or {last}"
