"""iBOT's masks against the official generator: the same distributions."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from parity.golden import Golden, Part, Settings, peek
from parity.statistics import (
    DRAWS,
    assert_same_distribution,
    assert_same_frequency,
    assert_same_mean,
    assert_same_quantiles,
    assert_same_spread,
)
from torch import Tensor

from unlabeled.data import masking
from unlabeled.data.masks.block import Config as BlockMask

LEVELS = (0, 0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99, 1)


class Counting:
    """A generator that counts the rectangles that are tried."""

    def __init__(self) -> None:
        self.rng, self.tried = np.random.default_rng(0), 0

    def random(self, size: Any) -> Any:
        drawn = self.rng.random(size)
        return self._one_by_one(drawn) if isinstance(size, tuple) else drawn

    def _one_by_one(self, rows: np.ndarray) -> Any:
        for row in rows:
            self.tried += 1
            yield row


class Drawn(NamedTuple):
    """What was drawn: masks [draws, rows, columns], rectangles in each, and rectangles tried per mask."""

    hidden: Tensor
    blocks: Tensor
    tried: Tensor


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """One test per setting of whatever set is given, as its names tell."""
    if "setting" in metafunc.fixturenames:
        golden = peek(metafunc.config, "ibot", "masks.safetensors")
        metafunc.parametrize("setting", (golden and golden.found(r"out/(\w+)/cell_frequency$")) or ["absent"])


@pytest.fixture(scope="module")
def golden(folder: Path) -> Golden:
    return Golden(folder / "masks.safetensors")


def mask_of(settings: Settings, aspect: tuple[float, float]) -> BlockMask:
    ratios = np.atleast_1d(settings.get("pred_ratio", 0.3))
    variances = np.broadcast_to(np.atleast_1d(settings.get("pred_ratio_var", 0.0)), ratios.shape)
    shape: Any = {"block": "block", "rand": "random"}[settings.get("pred_shape", "block")]
    return BlockMask(ratios=tuple(ratios), variances=tuple(variances), shape=shape, aspect=aspect)


def drawn(mask: BlockMask, grid: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> Drawn:
    """DRAWS masks, and how they came about."""
    rng, accepted, add = Counting(), [0], masking._add_block

    def counted(*arguments: Any) -> int:
        added = add(*arguments)
        accepted[-1] += bool(added)
        return added

    monkeypatch.setattr(masking, "_add_block", counted)
    hidden, numbers, tried = [], [], []
    for _ in range(DRAWS):
        accepted[-1], rng.tried = 0, 0
        hidden.append(mask.draw(rng, grid, 16).hidden.view(grid))  # type: ignore[arg-type]
        numbers.append(accepted[-1])
        tried.append(rng.tried)
    return Drawn(torch.stack(hidden).double(), torch.tensor(numbers).double(), torch.tensor(tried).double())


def test_masks(golden: Golden, setting: str, monkeypatch: pytest.MonkeyPatch) -> None:
    c, official = golden.config, golden.under(f"out/{setting}")
    settings = c.get("settings", c).get(setting, {})
    rows, columns = golden.shape(f"out/{setting}/cell_frequency")
    mine = drawn(mask_of(settings, tuple(c.get("pred_aspect_ratio", (0.3, 1 / 0.3)))), (rows, columns), monkeypatch)
    n = len(official["ratio_per_draw"])

    counts = (official["ratio_per_draw"].double() * rows * columns).round()
    assert_same_distribution(mine.hidden.sum((1, 2)), counts, "patches")
    assert_same_frequency(mine.hidden.mean(0), official["cell_frequency"], n)
    pairs = (mine.hidden[:, 1:] * mine.hidden[:, :-1]).mean((1, 2))
    error = pairs.std().item() / math.sqrt(n)
    assert_same_mean(pairs, official["vertical_pair_frequency"].item(), error, "pairs")
    assert_same_quantiles(mine.hidden.mean((1, 2)), official["ratio_quantiles"], torch.tensor(LEVELS), n, "ratio")

    assert_same_distribution(mine.blocks, official["blocks_per_draw"].double(), "rectangles")
    assert_same_summary(mine, official, n)
    assert_whole(official, counts)


def assert_whole(official: Part, counts: Tensor) -> None:
    """What the set says twice agrees: draws with their histogram and means, masks that are stored with their counts."""
    numbers, histogram = official["blocks_per_draw"].long(), official["block_count_histogram"]
    assert torch.equal(numbers.bincount(minlength=len(histogram)), histogram)
    ratio, _, _, empty, number, *_ = official["summary"].tolist()
    drawn = official["ratio_per_draw"].double()
    assert drawn.mean().item() == pytest.approx(ratio, abs=1e-7) and number == pytest.approx(numbers.double().mean())
    assert (drawn == 0).double().mean().item() == pytest.approx(empty)
    first = official[next(name for name in official if name.startswith("first"))].double()
    assert torch.equal(first.sum((1, 2)), counts[: len(first)])


def assert_same_summary(mine: Drawn, official: Part, n: int) -> None:
    """Ratio, its deviation and standard error, share of empty masks, the same of rectangles, rectangles tried."""
    ratio, deviation, error, empty, number, spread, uncertain, tried = official["summary"].tolist()
    assert_same_mean(mine.hidden.mean((1, 2)), ratio, error, "ratio")
    assert_same_spread(mine.hidden.mean((1, 2)), deviation, "ratio")
    nothing = (mine.hidden.sum((1, 2)) == 0).double()
    assert_same_mean(nothing, empty, math.sqrt(empty * (1 - empty) / n), "empty masks")
    assert_same_mean(mine.blocks, number, uncertain, "rectangles")
    assert_same_spread(mine.blocks, spread, "rectangles")
    assert_same_mean(mine.tried, tried, mine.tried.std().item() / math.sqrt(n), "rectangles tried")
    for one, many in ((error, deviation), (uncertain, spread)):
        assert one * math.sqrt(n) == pytest.approx(many, rel=1e-3, abs=1e-12)
