"""The mask of several blocks: what a step shares, what a context leaves out, and who sees which."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from unlabeled.data.batch.loader import ViewDataset
from unlabeled.data.batch.sampler import EpochSampler
from unlabeled.data.batch.samples import collate
from unlabeled.data.mask import ALONE, Place
from unlabeled.data.masks.multi_block import ATTEMPTS
from unlabeled.data.masks.multi_block import Config as MultiBlockMask
from unlabeled.data.opened import Opened
from unlabeled.data.sources.shapes import Config as Shapes
from unlabeled.data.view.views import View
from unlabeled.nn.patches import PatchMask

GRID, BATCH = (6, 9), 12


def drawn(mask: MultiBlockMask, step: int = 3, batch: int = BATCH) -> list[PatchMask]:
    """The masks of a global batch."""
    places = [Place(seed=5, step=step, row=row, batch=batch) for row in range(batch)]
    return [mask.draw(np.random.default_rng(place.row), GRID, 8, place) for place in places]


def rectangle(patches: list[int]) -> tuple[int, int]:
    """(rows, columns) of patches that fill one."""
    rows, columns = zip(*(divmod(patch, GRID[1]) for patch in patches), strict=True)
    size = max(rows) - min(rows) + 1, max(columns) - min(columns) + 1
    assert math.prod(size) == len(patches), "holes"
    return size


@pytest.mark.parametrize("fields", [{}, {"targets": 2, "reach": "full", "cut": "random", "min_keep": 0}])
def test_targets_are_blocks_of_one_size_in_a_step_and_no_context_has_their_patches(fields: dict[str, Any]) -> None:
    mask, sizes = MultiBlockMask.model_validate({"min_keep": 2, **fields}), set()
    for step in range(20):
        masks = drawn(mask, step)
        blocks = {rectangle(block) for one in masks for block in one.sets().tolist()}
        assert len(blocks) == 1 and len({len(one.indices()[0]) for one in masks}) == 1
        sizes |= blocks
        for one in masks:
            keep, _ = one.indices()
            assert keep.tolist() == sorted(keep.tolist()) and len(keep) > mask.min_keep
            assert not set(keep.tolist()) & set(one.sets().flatten().tolist())
    assert len(sizes) > 1, "another step has another size"


def naive_context(mask: MultiBlockMask, targets: list[list[int]], corners: list[tuple[int, int]]) -> set[int]:
    """The patches of a block of 5 x 7 at the first corner that leaves enough, a target less after each 20 attempts."""
    for attempt, (top, left) in enumerate(corners):
        block = {row * GRID[1] + column for row in range(top, top + 5) for column in range(left, left + 7)}
        cut = targets[: max(0, len(targets) - attempt // ATTEMPTS)]
        left_over = block - {patch for target in cut for patch in target}
        if len(left_over) > mask.min_keep:
            return left_over
    raise AssertionError("none leaves enough")


class Listed:
    """A generator that draws places from a list, and notes how many."""

    def __init__(self, corners: list[tuple[int, int]]) -> None:
        self.corners, self.used = corners, 0

    def random(self, shape: Any) -> np.ndarray:
        corner, self.used = self.corners[self.used], self.used + 1
        return np.array([[(corner[0] + 0.5) / (GRID[0] - 5), (corner[1] + 0.5) / (GRID[1] - 7)]])


@pytest.mark.parametrize(("min_keep", "used"), [(10, 1), (20, 21), (28, 41), (30, 61)])
def test_contexts_against_a_naive_reference(min_keep: int, used: int) -> None:
    """Targets of 6, 4 and 8 patches, of which the context must give up the fewer, the more it keeps."""
    targets = [
        [row * 9 + column for row in range(top, top + height) for column in range(left, left + width)]
        for top, left, height, width in ((0, 2, 2, 3), (2, 2, 1, 4), (3, 2, 2, 4))
    ]
    longest = max(map(len, targets))
    padded = np.array([[target + target[:1] * (longest - len(target)) for target in targets]])
    mask, corners = MultiBlockMask(min_keep=min_keep), [(0, number % 2) for number in range(90)]
    generator = Listed(corners)
    mine = mask.contexts(generator, padded, (5, 7), GRID)[0]  # type: ignore[arg-type]
    assert set(np.flatnonzero(mine).tolist()) == naive_context(mask, targets, corners)
    assert generator.used == used


def test_overlap_keeps_targets_in_the_context() -> None:
    seen = [
        set(one.indices()[0].tolist()) & set(one.sets().flatten().tolist())
        for one in drawn(MultiBlockMask(overlap=True))
    ]
    assert all(seen)


def test_the_cut_takes_the_lower_part_or_any() -> None:
    rng, maps = np.random.default_rng(0), np.zeros((2, 54), dtype=bool)
    maps[0, [3, 8, 20, 41, 50]] = maps[1, [7, 9]] = True
    assert MultiBlockMask().shortened(rng, maps).tolist() == [[3, 8], [7, 9]]
    anywhere = {tuple(MultiBlockMask(cut="random").shortened(rng, maps)[0]) for _ in range(200)}
    assert len(anywhere) == 10, "every pair of five"


def test_processes_and_micro_batches_see_the_masks_of_the_global_batch() -> None:
    view = View(size=32, mask=MultiBlockMask(min_keep=4), count=2)
    dataset = ViewDataset(Opened(Shapes(train_size=24, val_size=1, size=32)).train, (view,), 4, seed=7)

    def masks(world: int, accumulate: int) -> list[PatchMask]:
        """Of three steps, rows in the order of the global batch."""
        samplers = [
            EpochSampler(24, 12, 3, seed=7, rank=rank, world=world, accumulate=accumulate) for rank in range(world)
        ]
        micro = [[collate([dataset[one] for one in rows]).crops[0].mask for rows in sampler] for sampler in samplers]
        steps = [
            [part for own in micro for part in own[step * accumulate : (step + 1) * accumulate]] for step in range(3)
        ]
        return [PatchMask(*(torch.cat(column) for column in zip(*parts, strict=True))) for parts in steps]  # type: ignore[arg-type]

    whole = masks(1, 1)
    for world, accumulate in ((2, 1), (3, 2)):
        for one, other in zip(whole, masks(world, accumulate), strict=True):
            assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))
    assert whole[0].targets is not None and whole[0].targets.shape[:3] == (12, 2, 4)
    assert not torch.equal(whole[0].hidden[:, 0], whole[0].hidden[:, 1]), "crops of an image have places of their own"


@pytest.mark.parametrize(
    ("fields", "size", "text"),
    [
        ({}, (32, 32), r"min_keep 10: the smallest context of 4x4 patches has 9\. Set min_keep=2 or lower"),
        ({"min_keep": 2}, (8, 64), "at least 2x2 patches, found 1x8"),
        ({"min_keep": 48}, (64, 64), None),
        ({"min_keep": 49}, (64, 64), "has 49"),
    ],
)
def test_crops_that_are_too_small_are_refused(fields: dict[str, int], size: tuple[int, int], text: str | None) -> None:
    mask = MultiBlockMask.model_validate(fields)
    if text is None:
        mask.check(size, 8)
        assert mask.draw(np.random.default_rng(0), (8, 8), 8).indices()[0].shape == (49,)
    else:
        with pytest.raises(ValueError, match=text):
            mask.check(size, 8)


def test_impossible_fields_are_refused() -> None:
    for fields, text in (
        ({"target_scale": [0.2, 0.1]}, r"expected \[low, high\], found \[0.2, 0.1\]"),
        ({"targets": 0}, "greater than or equal to 1"),
        ({"reach": "all"}, "'official' or 'full'"),
    ):
        with pytest.raises(ValidationError, match=text):
            MultiBlockMask.model_validate(fields)


def test_a_plan_says_what_is_seen_and_predicted() -> None:
    said = MultiBlockMask(targets=3).describe((224, 224), 16)
    assert said == "sees a block of 85-100 % without 3 blocks of 15-20 %, which are predicted"
    assert MultiBlockMask().draw(np.random.default_rng(0), (14, 14), 16, ALONE).sets().shape[0] == 4
