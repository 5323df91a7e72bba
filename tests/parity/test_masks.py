"""Masks against the official generators: the same distributions, within what sampling allows."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from parity.conftest import Golden, each, golden_folder
from torch import Tensor

from unlabeled.data.masks import BlockMask, Mask, RandomMask, StratifiedBlockMask

DRAWS = 2000
LIMIT = 4.5  # standard errors


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """One test per setting of whatever set is given."""
    for method in ("ibot", "dinov2"):
        if f"{method}_setting" in metafunc.fixturenames:
            metafunc.parametrize(f"{method}_setting", each(metafunc.config, method, "masks", "settings"))


def golden_of(request: pytest.FixtureRequest, method: str) -> Golden:
    return Golden(golden_folder(request.config, method) / "masks.safetensors")


def draws(mask: Mask, grid: tuple[int, int], patch: int) -> Tensor:
    """[draws, rows, columns] bool."""
    rng = np.random.default_rng(0)
    return torch.stack([mask.draw(rng, grid, patch).hidden.view(grid) for _ in range(DRAWS)])


def assert_same_distribution(mine: Tensor, official: Tensor) -> None:
    """Kolmogorov and Smirnov's distance between two samples, and the means."""
    values = torch.cat([mine, official]).unique()
    below = [(sample.sort().values.unsqueeze(0) <= values.unsqueeze(1)).double().mean(1) for sample in (mine, official)]
    n = len(mine) * len(official) / (len(mine) + len(official))
    assert (below[0] - below[1]).abs().max() < 2.47 / math.sqrt(n)
    error = math.sqrt(mine.var() / len(mine) + official.var() / len(official))
    assert abs(mine.mean() - official.mean()) < LIMIT * error + 1e-6


def assert_same_frequency(mine: Tensor, official: Tensor, n: int) -> None:
    """Two frequencies per cell, ours over DRAWS, theirs over n."""
    both = (mine * DRAWS + official * n) / (DRAWS + n)
    error = (both * (1 - both) * (1 / DRAWS + 1 / n)).sqrt().clamp_min(1 / DRAWS)
    assert ((mine - official).abs() / error).max() < LIMIT


def test_ibot(request: pytest.FixtureRequest, ibot_setting: str) -> None:
    golden = golden_of(request, "ibot")
    config: dict[str, Any] = golden.config["settings"][ibot_setting]
    assert np.allclose(golden.config["pred_aspect_ratio"], [0.3, 1 / 0.3])
    ratios, variances = (np.atleast_1d(config[key]).tolist() for key in ("pred_ratio", "pred_ratio_var"))
    shape: Any = {"block": "block", "rand": "random"}[config["pred_shape"]]
    patch, side = golden.config["patch"], config["size"] // golden.config["patch"]
    mask = BlockMask(ratios=tuple(ratios), variances=tuple(variances), shape=shape)
    hidden = draws(mask, (side, side), patch).double()

    official, n = golden.under(f"out/{ibot_setting}"), golden.config["draws"]
    counts = (official["ratio_per_draw"].double() * side**2).round()
    assert_same_distribution(hidden.sum((1, 2)), counts)
    assert_same_frequency(hidden.mean(0), official["cell_frequency"], n)
    pairs = (hidden[:, 1:] * hidden[:, :-1]).mean((1, 2))
    error = pairs.std() * math.sqrt(1 / DRAWS + 1 / n)
    assert abs(pairs.mean() - official["vertical_pair_frequency"]) < LIMIT * error


def test_dinov2(request: pytest.FixtureRequest, dinov2_setting: str) -> None:
    golden = golden_of(request, "dinov2")
    config = golden.config["settings"][dinov2_setting]
    assert (golden.config["min_num_patches"], golden.config["max_num_patches"]) == (4, "0.5*grid^2")
    side, target = config["grid"], config["num_masking_patches"]
    ratio = (target + 0.5) / side**2
    hidden = draws(StratifiedBlockMask(share=1.0, ratio=(ratio, ratio)), (side, side), 16).double()

    official = golden.under(f"out/{dinov2_setting}")
    assert_same_distribution(hidden.sum((1, 2)), official["count_per_draw"].double())
    assert_same_frequency(hidden.mean(0), official["cell_frequency"], golden.config["draws"])


class Shuffled:
    """A generator whose noise sorts into a given order."""

    def __init__(self, order: Tensor) -> None:
        self.noise = order.argsort().double().numpy()

    def random(self, n: int) -> np.ndarray:
        assert n == len(self.noise)
        return self.noise


@pytest.mark.parametrize("encoder", ["vit", "swin"])
def test_simmim_from_the_same_permutations(request: pytest.FixtureRequest, encoder: str) -> None:
    golden = golden_of(request, "simmim")
    config, official = golden.config, golden[f"out/mask_{encoder}"]
    patch = config["model_patch_size"][encoder]
    mask = RandomMask(ratio=config["mask_ratio"], unit=config["mask_patch_size"], rounding="ceil_hidden")
    side = config["input_size"] // patch
    mask.check((config["input_size"], config["input_size"]), patch)
    for permutation, expected in zip(golden["in/permutation"], official, strict=False):
        # the official code hides the first of a permutation, ours keeps them
        count = mask.hidden(len(permutation))
        rng: Any = Shuffled(torch.cat([permutation[count:], permutation[:count]]))
        assert torch.equal(mask.draw(rng, (side, side), patch).hidden.view(side, side), expected.bool())


def test_simmim_counts_and_frequencies(request: pytest.FixtureRequest) -> None:
    golden = golden_of(request, "simmim")
    config, table = golden.config, golden["out/mask_count_table"]
    side = config["input_size"] // config["mask_patch_size"]
    counts = [RandomMask(ratio=ratio, rounding="ceil_hidden").hidden(side**2) for ratio in table[:, 0].tolist()]
    assert counts == table[:, 1].tolist()
    hidden = draws(RandomMask(ratio=config["mask_ratio"], rounding="ceil_hidden"), (side, side), 32).double()
    assert_same_frequency(hidden.mean(0), golden["out/vit_cell_frequency"], config["draws"])
