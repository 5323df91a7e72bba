"""Random masks: how many, which, and in what order."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from unlabeled.data.masks import RandomMask
from unlabeled.nn.patches import PatchMask

Grid = tuple[int, int]
CASES = [
    (0.75, None, (14, 14)),
    (0.6, 32, (14, 14)),
    (0.5, None, (3, 5)),
    (0.5, 48, (6, 9)),
    (0.9, None, (8, 2)),
]


def draw(ratio: float, unit: int | None, grid: Grid, seed: int = 0) -> PatchMask:
    return RandomMask(ratio=ratio, unit=unit).draw(np.random.default_rng(seed), grid, 16)


@pytest.mark.parametrize(
    ("ratio", "unit", "hidden"),
    # MAE keeps int(N (1 - ratio)) of N units: 49 of 196 patches, 19 of 49 units of 4 patches
    [(0.75, None, 147), (0.6, 32, (49 - 19) * 4), (0.6, None, 196 - 78), (0.9, None, 196 - 19)],
)
def test_a_224_crop_hides_as_many_as_maes_rule_says(ratio: float, unit: int | None, hidden: int) -> None:
    mask = draw(ratio, unit, (14, 14))
    keep, drop = mask.indices()
    assert (int(mask.hidden.sum()), len(drop), len(keep)) == (hidden, hidden, 196 - hidden)


@pytest.mark.parametrize(("ratio", "unit", "grid"), CASES)
def test_keep_and_drop_share_the_patches_out(ratio: float, unit: int | None, grid: Grid) -> None:
    mask = draw(ratio, unit, grid)
    keep, drop = mask.indices()
    assert torch.cat([keep, drop]).sort().values.tolist() == list(range(grid[0] * grid[1]))
    assert mask.hidden[drop].all() and not mask.hidden[keep].any()
    assert (mask.hidden.dtype, keep.dtype, drop.dtype) == (torch.bool, torch.int64, torch.int64)


@pytest.mark.parametrize(("grid", "unit"), [((14, 14), 32), ((6, 9), 48), ((2, 8), 32)])
def test_units_are_hidden_whole(grid: Grid, unit: int) -> None:
    factor = unit // 16
    hidden = draw(0.5, unit, grid).hidden.view(grid)
    for row in range(0, grid[0], factor):
        for column in range(0, grid[1], factor):
            square = hidden[row : row + factor, column : column + factor]
            assert square.all() or not square.any()


def counts(drawn: list[Tensor], n: int) -> np.ndarray:
    return torch.bincount(torch.cat(drawn), minlength=n).numpy()


@pytest.mark.parametrize("unit", [None, 32])
def test_every_patch_is_hidden_equally_often(unit: int | None) -> None:
    mask, rng, draws = RandomMask(ratio=0.75, unit=unit), np.random.default_rng(0), 2000
    hidden = counts([mask.draw(rng, (4, 6), 16).indices()[1] for _ in range(draws)], 24)
    share = hidden.sum() / (24 * draws)
    deviations = (hidden - draws * share) / np.sqrt(draws * share * (1 - share))
    assert np.abs(deviations).max() < 4.5


@pytest.mark.parametrize("half", [0, 1])
def test_any_first_part_of_drop_is_uniform(half: int) -> None:
    mask, rng, draws = RandomMask(ratio=0.75), np.random.default_rng(1), 2000
    drops = [mask.draw(rng, (4, 4), 16).indices()[1] for _ in range(draws)]
    part = counts([drop[half * 6 : half * 6 + 6] for drop in drops], 16)
    chi_square = ((part - draws * 6 / 16) ** 2 / (draws * 6 / 16)).sum()
    # 15 degrees of freedom: above 45 once in ten thousand; sorted indices give thousands
    assert chi_square < 45


def test_masks_follow_from_the_generator_alone() -> None:
    assert torch.equal(draw(0.75, None, (14, 14), seed=1).hidden, draw(0.75, None, (14, 14), seed=1).hidden)
    assert not torch.equal(draw(0.75, None, (14, 14), seed=1).hidden, draw(0.75, None, (14, 14), seed=2).hidden)
