"""I-JEPA's mask: several blocks to predict, and a large block that is seen, without them."""

from __future__ import annotations

import math
from functools import lru_cache
from typing import ClassVar, Literal

import numpy as np
import torch
from pydantic import Field

from unlabeled.data.mask import ALONE, Grid, Mask, Place
from unlabeled.data.masking import Aspect, Shares, check_grid
from unlabeled.nn.patches import PatchMask
from unlabeled.randomness import Stream, stream

ATTEMPTS = 20  # to place a context block before one target less is cut out of it
SQUARE = (1.0, 1.0)


class Config(Mask, frozen=True, extra="forbid"):
    """I-JEPA's multi-block mask (section 3, official `masks/multiblock.py`), shared out over the global batch.

    Targets are blocks of one size, each to be predicted on its own; the context is a larger block without their
    patches, and all else is hidden. Sizes are drawn once for a step, from (seed, step) alone; places of all pictures of
    the step follow from the same numbers, so that the shortest context of the global batch, which all are cut to, is
    known to every process and worker. The official minimum is over the batch of one process.
    """

    equal_counts: ClassVar[bool] = True
    name: Literal["multi_block"] = "multi_block"
    targets: int = Field(4, ge=1, le=64, description="blocks to predict in every crop")
    target_scale: Shares = Field((0.15, 0.2), description="share of the patches in such a block, from and to")
    target_aspect: Aspect = Field((0.75, 1.5), description="height over width of such a block, from and to")
    context_scale: Shares = Field((0.85, 1.0), description="share of the patches in the square that is seen")
    min_keep: int = Field(10, ge=0, description="more than so many patches are seen: else fewer targets are cut out")
    overlap: bool = Field(False, description="targets stay in the context (official allow_overlap)")
    reach: Literal["official", "full"] = Field(
        "official", description="places of blocks: all but the last row and column (official code and weights), or all"
    )
    cut: Literal["first", "random"] = Field(
        "first", description="which patches of longer contexts stay: the upper ones (official), or any"
    )

    @property
    def steady(self) -> bool:
        return False

    def check(self, size: Grid, patch: int) -> None:
        check_grid(size, patch)
        grid = size[0] // patch, size[1] // patch
        smallest = math.prod(block_size(0.0, self.context_scale, SQUARE, grid))
        if smallest <= self.min_keep:
            raise ValueError(
                f"min_keep {self.min_keep}: the smallest context of {grid[0]}x{grid[1]} patches has {smallest}. "
                f"Set min_keep={smallest // 4} or lower, smaller patches, or a larger context_scale"
            )

    def describe(self, size: Grid, patch: int) -> str:
        context, target = (
            "-".join(f"{100 * share:g}" for share in shares) for shares in (self.context_scale, self.target_scale)
        )
        without = "with" if self.overlap else "without"
        return f"sees a block of {context} % {without} {self.targets} blocks of {target} %, which are predicted"

    def draw(self, rng: np.random.Generator, grid: Grid, patch: int, place: Place = ALONE) -> PatchMask:
        """A mask over a grid of (rows, columns) patches: hidden [N], keep [K] and targets [T, M] row-major, drop
        [N - K] in random order."""
        contexts, targets = drawn(self, grid, place.seed, place.step, place.slots)
        row = place.crop * place.batch + place.row
        hidden = np.ones(grid[0] * grid[1], dtype=bool)
        hidden[contexts[row]] = False
        drop = np.flatnonzero(hidden)
        drop = drop[np.argsort(rng.random(len(drop)), kind="stable")]
        keep, sets = torch.tensor(contexts[row]), torch.tensor(targets[row])
        return PatchMask(torch.from_numpy(hidden), keep, torch.from_numpy(drop), sets)

    def placed(self, rng: np.random.Generator, shape: tuple[int, ...], size: Grid, grid: Grid) -> np.ndarray:
        """Blocks of `size` (rows, columns) at random places of a grid: their patches [*shape, rows * columns]."""
        (height, width), more = size, int(self.reach == "full")
        room = np.array([grid[0] - height + more, grid[1] - width + more])
        corner = (rng.random((*shape, 2)) * room).astype(np.int64)
        inside = np.arange(height)[:, None] * grid[1] + np.arange(width)
        return (corner @ np.array([grid[1], 1]))[..., None] + inside.reshape(-1)

    def contexts(self, rng: np.random.Generator, targets: np.ndarray, size: Grid, grid: Grid) -> np.ndarray:
        """Blocks of `size` without the patches of `targets` [rows, T, M], as maps [rows, N] bool.

        One that has too few patches left is placed again; after each twenty times one target less is cut out.
        """
        seen, left = np.zeros((len(targets), math.prod(grid)), dtype=bool), np.arange(len(targets))
        for count in reversed(range(1 + (0 if self.overlap else targets.shape[1]))):
            for _ in range(ATTEMPTS):
                block = covered(self.placed(rng, (len(left),), size, grid), grid)
                seen[left] = block & ~covered(targets[left, :count].reshape(len(left), -1), grid)
                left = left[seen[left].sum(1) <= self.min_keep]
                if not len(left):
                    return seen
        return seen

    def shortened(self, rng: np.random.Generator, seen: np.ndarray) -> np.ndarray:
        """The patches of maps [rows, N] bool, cut to as many as the fewest have: [rows, K], row-major."""
        rank = seen.cumsum(1)
        if self.cut == "random":
            rank = 1 + np.where(seen, rng.random(seen.shape), 2.0).argsort(1).argsort(1)
        return np.nonzero(seen & (rank <= seen.sum(1).min()))[1].reshape(len(seen), -1)


def block_size(uniform: float, scale: tuple[float, float], aspect: tuple[float, float], grid: Grid) -> Grid:
    """(rows, columns) of a block, smaller than the grid both ways; one draw in [0, 1) decides area and aspect."""
    area = int(math.prod(grid) * (scale[0] + uniform * (scale[1] - scale[0])))
    ratio = aspect[0] + uniform * (aspect[1] - aspect[0])
    height, width = (max(1, round(math.sqrt(product))) for product in (area * ratio, area / ratio))
    return min(height, grid[0] - 1), min(width, grid[1] - 1)


def covered(patches: np.ndarray, grid: Grid) -> np.ndarray:
    """Patches [rows, M] as maps [rows, N] bool."""
    maps = np.zeros((len(patches), math.prod(grid)), dtype=bool)
    np.put_along_axis(maps, patches, True, axis=1)
    return maps


@lru_cache(maxsize=4)
def drawn(mask: Config, grid: Grid, seed: int, step: int, rows: int) -> tuple[np.ndarray, np.ndarray]:
    """Contexts [rows, K] and targets [rows, T, M] of all crops of a global batch."""
    rng = stream(seed, Stream.BLOCKS, step)
    target = block_size(rng.random(), mask.target_scale, mask.target_aspect, grid)
    context = block_size(rng.random(), mask.context_scale, SQUARE, grid)
    targets = mask.placed(rng, (rows, mask.targets), target, grid)
    return mask.shortened(rng, mask.contexts(rng, targets, context, grid)), targets
