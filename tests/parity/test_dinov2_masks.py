"""DINOv2's masks against the official generator: the same distributions."""

from __future__ import annotations

import math
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from parity.golden import Golden, Settings, peek
from parity.statistics import (
    DRAWS,
    assert_same_distribution,
    assert_same_frequency,
    assert_same_mean,
    assert_same_spread,
)

from unlabeled.data import masking
from unlabeled.data.masks.stratified_block import DINOV2_SMALLEST
from unlabeled.data.masks.stratified_block import Config as StratifiedBlockMask


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """One test per setting of whatever set is given, as its names tell."""
    if "setting" in metafunc.fixturenames:
        golden = peek(metafunc.config, "dinov2", "masks.safetensors")
        metafunc.parametrize("setting", (golden and golden.found(r"out/(\w+)/cell_frequency$")) or ["absent"])


def most(settings: Settings, grid: tuple[int, int]) -> float:
    """The largest rectangle: a number of patches, a text such as "0.5*grid^2", or half of them."""
    said = settings.get("max_num_patches", 0.5)
    share = re.fullmatch(r"([\d.]+)\s*\*.*", said) if isinstance(said, str) else None
    number = float(share[1] if share else said)
    return number * grid[0] * grid[1] if number <= 1 else number


def target_of(settings: Settings, setting: str) -> int:
    """Patches to hide: a setting, or the digits at the end of a name such as 14_n58."""
    return settings.get("num_masking_patches") or int(re.findall(r"\d+", setting)[-1])


def test_masks(folder: Path, setting: str) -> None:
    golden = Golden(folder / "masks.safetensors")
    c, official = golden.config, golden.under(f"out/{setting}")
    rows, columns = golden.shape(f"out/{setting}/cell_frequency")
    settings = Settings({**c, **c.get("settings", c).get(setting, {})})
    target = target_of(settings, setting)
    smallest, largest = settings.get("min_num_patches", DINOV2_SMALLEST), most(settings, (rows, columns))
    aspect = StratifiedBlockMask().aspect
    rng = np.random.default_rng(0)
    masks = [masking.hide_blocks(rng, (rows, columns), target, smallest, largest, aspect) for _ in range(DRAWS)]
    hidden, n = torch.from_numpy(np.stack(masks)).double(), len(official["count_per_draw"])

    counts = official["count_per_draw"].double()
    assert_same_distribution(hidden.sum((1, 2)), counts, "patches")
    assert_same_frequency(hidden.mean(0), official["cell_frequency"], n)
    mean, deviation, error = official["summary"].tolist()
    assert_same_mean(hidden.mean((1, 2)), mean, error, "ratio")
    assert_same_spread(hidden.mean((1, 2)), deviation, "ratio")
    assert error * math.sqrt(n) == pytest.approx(deviation, rel=1e-3, abs=1e-12)

    # what the set says twice agrees
    assert counts.mean().item() / (rows * columns) == pytest.approx(mean)
    first = official[next(name for name in official if name.startswith("first"))].double()
    assert torch.equal(first.sum((1, 2)), counts[: len(first)])


def test_our_mask_draws_by_this_generator() -> None:
    """With DINOv2's bounds: at least 4 patches, at most half of an even grid."""
    mask, grid = StratifiedBlockMask(share=1.0, ratio=(0.3, 0.3)), (14, 14)
    mine = mask.draw(np.random.default_rng(0), grid, 16).hidden.view(grid)
    rng = np.random.default_rng(0)
    rng.random()
    assert DINOV2_SMALLEST == 4
    assert mine.equal(torch.from_numpy(masking.hide_blocks(rng, grid, int(0.3 * 196), 4, 98, mask.aspect)))
