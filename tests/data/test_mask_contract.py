"""The contract of masks, for every file of `masks/` and for modules outside it (`--kind mask=MODULE`)."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from pydantic import BaseModel, ValidationError

from unlabeled.data.mask import ALONE, MASKS, AnyMask, Mask, Place
from unlabeled.nn.patches import PatchMask
from unlabeled.recipe import dump, parse

Grid = tuple[int, int]
PATCH = 4
GRIDS: list[Grid] = [(14, 14), (8, 8), (4, 6), (6, 4), (3, 5), (2, 2)]
PLACES = [ALONE, *(Place(seed=3, step=5, row=row, batch=8, crop=row % 2, crops=2) for row in range(8))]

every_mask = pytest.mark.every_kind("mask")


class Section(BaseModel, frozen=True, extra="forbid"):
    mask: AnyMask


@pytest.fixture
def mask(section: dict[str, Any]) -> Mask:
    found = MASKS.kind(section["name"]).model_validate(section)
    assert isinstance(found, Mask)
    return found


def fitting(mask: Mask) -> list[Grid]:
    """The grids that it does not refuse."""
    found = []
    for grid in GRIDS:
        try:
            mask.check((grid[0] * PATCH, grid[1] * PATCH), PATCH)
        except ValueError:
            continue
        found.append(grid)
    return found


def draws(mask: Mask, grid: Grid) -> list[PatchMask]:
    """Masks at several places of a batch, each from the generator of its own sample."""
    return [
        mask.draw(np.random.default_rng([seed, number]), grid, PATCH, place)
        for seed in range(4)
        for number, place in enumerate(PLACES)
    ]


def of_one_step(drawn: list[PatchMask]) -> list[list[PatchMask]]:
    """The masks of `draws` by the step of their place."""
    steps = [place.step for place in PLACES]
    every = [steps[number % len(steps)] for number in range(len(drawn))]
    return [[one for one, own in zip(drawn, every, strict=True) if own == step] for step in sorted(set(steps))]


@every_mask
def test_fits_a_crop_or_refuses_it(mask: Mask) -> None:
    grids = fitting(mask)
    assert grids, f"expected a mask that fits one of {GRIDS} patches"
    for grid in grids:
        assert draws(mask, grid) and mask.describe((grid[0] * PATCH, grid[1] * PATCH), PATCH)


@every_mask
def test_depends_on_its_generator_and_place_alone(mask: Mask) -> None:
    for grid in fitting(mask):
        torch.manual_seed(0)
        np.random.seed(0)
        first = draws(mask, grid)
        torch.manual_seed(1)
        np.random.seed(1)
        state = torch.get_rng_state()
        for one, two in zip(first, draws(mask, grid), strict=True):
            assert all(a is b is None or torch.equal(a, b) for a, b in zip(one, two, strict=True))
        assert torch.equal(torch.get_rng_state(), state)


@every_mask
def test_hidden_keep_and_drop_agree(mask: Mask) -> None:
    for grid in fitting(mask):
        for hidden, keep, drop, targets in draws(mask, grid):
            assert (hidden.dtype, hidden.shape) == (torch.bool, (grid[0] * grid[1],))
            assert (keep is None) == (drop is None)
            if keep is not None and drop is not None:
                assert keep.dtype == drop.dtype == torch.int64
                assert torch.cat([keep, drop]).sort().values.tolist() == list(range(len(hidden)))
                assert hidden[drop].all() and not hidden[keep].any()
            if targets is not None:
                assert targets.dtype == torch.int64 and targets.ndim == 2 and targets.min() >= 0
                assert targets.max() < len(hidden) and all(len(set(one)) == len(one) for one in targets.tolist())


@every_mask
def test_equal_counts_is_true_to_its_word(mask: Mask) -> None:
    for grid in fitting(mask):
        drawn = draws(mask, grid)
        found = {one.keep is not None for one in drawn}
        assert found == {mask.equal_counts}, "`keep` and `drop` exist with equal counts alone"
        for batch in [drawn] if mask.steady else of_one_step(drawn):
            if mask.equal_counts:
                counts = {int(one.hidden.sum()) for one in batch}
                assert len(counts) == 1 and 0 < min(counts) < grid[0] * grid[1]
            assert PatchMask.stack(batch).hidden.shape == (len(batch), grid[0] * grid[1])


@every_mask
def test_settings(mask: Mask, section: dict[str, Any]) -> None:
    assert mask.name == section["name"] and hash(mask) == hash(mask.model_copy())
    assert parse(Section, dump(Section(mask=mask))).mask == mask
    assert mask.rounded("floor_hidden").name == mask.name
    with pytest.raises(ValidationError):
        mask.name = "other"
    with pytest.raises(ValidationError):
        type(mask).model_validate({**section, "no_such_field": 1})
