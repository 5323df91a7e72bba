"""SimMIM's masks against its generator: the same from the same permutations, and in number and distribution."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from parity.golden import Golden, peek
from parity.statistics import DRAWS, LIMIT, assert_same_frequency, draws
from torch import Tensor

from unlabeled.data.masks.random import Config as RandomMask


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """One test per encoder that masks are there for."""
    if "encoder" in metafunc.fixturenames:
        golden = peek(metafunc.config, "simmim", "masks.safetensors")
        metafunc.parametrize("encoder", (golden and golden.found(r"out/mask_(?!count)(\w+)$")) or ["absent"])


@pytest.fixture(scope="module")
def golden(folder: Path) -> Golden:
    return Golden(folder / "masks.safetensors")


def mask_of(golden: Golden) -> RandomMask:
    ratio, unit = golden.config.get("mask_ratio", 0.6), golden.config.get("mask_patch_size", 32)
    return RandomMask(ratio=ratio, unit=unit, rounding="ceil_hidden")


def units_of(golden: Golden) -> int:
    """How many units a picture has."""
    return golden.shape("in/permutation")[1]


def shape_of(golden: Golden, encoder: str) -> tuple[tuple[int, int], int]:
    """The grid of patches of an encoder, and their side in pixels."""
    _, rows, columns = golden.shape(f"out/mask_{encoder}")
    return (rows, columns), mask_of(golden).unit * round(units_of(golden) ** 0.5) // columns  # type: ignore[operator]


class Shuffled:
    """A generator whose noise sorts into a given order."""

    def __init__(self, order: Tensor) -> None:
        self.noise = order.argsort().double().numpy()

    def random(self, n: int) -> np.ndarray:
        assert n == len(self.noise)
        return self.noise


def test_the_same_masks_from_the_same_permutations(golden: Golden, encoder: str) -> None:
    mask, (grid, patch) = mask_of(golden), shape_of(golden, encoder)
    mask.check((grid[0] * patch, grid[1] * patch), patch)
    for permutation, expected in zip(golden["in/permutation"], golden[f"out/mask_{encoder}"], strict=False):
        # the official code hides the first of a permutation, ours keeps them
        count = mask.hidden(len(permutation))
        rng: Any = Shuffled(torch.cat([permutation[count:], permutation[:count]]))
        assert torch.equal(mask.draw(rng, grid, patch).hidden.view(grid), expected.bool())


def test_every_draw_hides_as_many(golden: Golden, encoder: str) -> None:
    mask, ((rows, columns), patch) = mask_of(golden), shape_of(golden, encoder)
    units, per_unit = units_of(golden), (mask.unit // patch) ** 2  # type: ignore[operator]
    hidden = mask.draw(np.random.default_rng(0), (rows, columns), patch).hidden.sum()
    assert golden[f"out/{encoder}_masked_tokens_per_draw"].unique().tolist() == [hidden]
    assert golden[f"out/{encoder}_masked_cells_per_draw"].unique().tolist() == [hidden / per_unit]
    assert golden[f"out/{encoder}_ratio"].item() == pytest.approx(hidden.item() / per_unit / units)
    assert hidden == mask.hidden(units) * per_unit


def test_counts_of_other_ratios(golden: Golden) -> None:
    for ratio, count in golden["out/mask_count_table"].tolist():
        assert RandomMask(ratio=ratio, rounding="ceil_hidden").hidden(units_of(golden)) == count, ratio


def test_every_unit_is_hidden_as_often(golden: Golden, encoder: str) -> None:
    official = golden[f"out/{encoder}_cell_frequency"]
    hidden = draws(mask_of(golden).model_copy(update={"unit": None}), tuple(official.shape), 32).double()
    assert_same_frequency(hidden.mean(0), official, golden.config.get("draws", DRAWS))


def test_units_are_drawn_without_replacement(golden: Golden) -> None:
    """Whether one is hidden says a little about the others: their covariance is -p (1 - p) / (units - 1)."""
    units, mask = units_of(golden), mask_of(golden).model_copy(update={"unit": None})
    hidden = draws(mask, (units, 1), 32).double().flatten(1)
    covariance = torch.cov(hidden.T)
    between = (covariance.sum() - covariance.trace()) / (units * (units - 1))
    p = mask.hidden(units) / units
    # whatever is drawn, all cells together hide a constant number: the sum of all covariances is 0
    assert between.item() == pytest.approx(-p * (1 - p) / (units - 1), rel=LIMIT / DRAWS**0.5)
    assert golden["out/cell_covariance_mean_offdiag"].item() == pytest.approx(between.item(), rel=LIMIT / DRAWS**0.5)
