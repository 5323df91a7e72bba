"""Random masks: how many, which, and in what order."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from unlabeled.data.mask import Rounding
from unlabeled.data.masks.block import Config as BlockMask
from unlabeled.data.masks.fixed_block import Config as FixedBlockMask
from unlabeled.data.masks.random import Config as RandomMask
from unlabeled.nn.patches import PatchMask
from unlabeled.pretrain.methods.ibot import Config as IBOT
from unlabeled.pretrain.methods.mae import Config as MAE
from unlabeled.pretrain.methods.simmim import Config as SimMIM

Grid = tuple[int, int]
RULES: tuple[Rounding, ...] = ("floor_visible", "ceil_hidden", "floor_hidden", "round_visible")
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


def test_every_method_rounds_its_own_way() -> None:
    """MAE keeps int(N (1 - r)), SimMIM hides np.ceil(N r), iBOT's random masks hide int(N r), SparK keeps
    round(N (1 - r)), in floats."""
    for units in range(2, 200):
        for ratio in (0.05, 0.3, 0.4, 0.5, 0.55, 0.6, 0.7, 0.75, 0.8, 0.9, 0.95):
            hidden = {rule: RandomMask(ratio=ratio, rounding=rule).hidden(units) for rule in RULES}
            kept = units * (1 - ratio)
            official = (units - int(kept), int(np.ceil(units * ratio)), int(units * ratio), units - round(kept))
            assert tuple(hidden.values()) == official, (units, ratio)
            assert RandomMask(ratio=ratio).hidden(units) == official[0]
            assert FixedBlockMask(ratio=ratio, rounding="ceil_hidden").hidden(units) == official[1]


@pytest.mark.parametrize(("side", "ratio", "hidden"), [(160, 0.8, 20), (160, 0.6, 15), (320, 0.55, 56), (192, 0.6, 22)])
def test_simmim_hides_as_many_units_as_its_code(side: int, ratio: float, hidden: int) -> None:
    """25 x 0.8 are 20, 100 x 0.55 are 55.00000000000001; by MAE's rule 25 units would lose 21."""
    asked = {"size": side, "mask": {"name": "random", "ratio": ratio, "unit": 32}}
    mask = SimMIM.model_validate({"view": asked}).view.mask
    grid = (side // 16, side // 16)
    assert mask is not None and int(mask.draw(np.random.default_rng(0), grid, 16).hidden.sum()) == 4 * hidden


def test_a_method_rounds_the_masks_of_its_recipe_and_a_recipe_may_differ() -> None:
    def mask_of(config: Any, view: str, mask: dict[str, Any]) -> Any:
        return getattr(config.model_validate({view: {"size": 160, "mask": mask}, **whole(config)}), view).mask

    def whole(config: Any) -> dict[str, Any]:
        rest = {"global_2": {"size": 160, "mask": {"name": "block"}}, "local": None}
        return rest if config is IBOT else {}

    random, fixed = {"name": "random", "ratio": 0.8}, {"name": "fixed_block", "ratio": 0.8}
    for config, view, rounding in ((MAE, "view", None), (SimMIM, "view", RULES[1]), (IBOT, "global_1", RULES[2])):
        assert mask_of(config, view, random).rounding == rounding
        assert mask_of(config, view, fixed).rounding == rounding
        assert mask_of(config, view, {"name": "inverse", "mask": random}).mask.rounding == rounding
        assert mask_of(config, view, {**random, "rounding": RULES[0]}).rounding == RULES[0]
    assert mask_of(IBOT, "global_1", {"name": "block"}) == BlockMask()


@pytest.mark.parametrize(("ratio", "rounding", "share"), [(0.9, "ceil_hidden", "every"), (0.2, "floor_hidden", "no")])
def test_a_mask_hides_something_and_shows_something(ratio: float, rounding: Any, share: str) -> None:
    with pytest.raises(ValueError, match=f"hides {share} unit of a 32x32 crop, which has 4"):
        RandomMask(ratio=ratio, rounding=rounding).check((32, 32), 16)


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
