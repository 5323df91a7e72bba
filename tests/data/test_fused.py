"""Fused colours: torchvision's wherever nothing leaves the bounds and no hue turns; one map, on both paths."""

from __future__ import annotations

from itertools import permutations

import numpy as np
import pytest
import torch
from torch import Tensor

from unlabeled.data.batch.loader import Normalize
from unlabeled.data.view.percrop import recolour_and_normalize
from unlabeled.data.view.photometric import HUE, UNCHANGED, Photometric
from unlabeled.data.view.recolour import compose, recolour, tint_fused
from unlabeled.data.view.views import View

ORDERS = torch.tensor(list(permutations(range(4))))
N = len(ORDERS)
EVERYTHING = View(
    size=16, jitter=(0.4, 0.4, 0.2, 0.1), grayscale=0.2, blur=0.5, solarize=0.3, fused=True, blur_radius=(0.1, 2.0)
)


def drawn(factors: Tensor, grey: bool = False) -> Photometric:
    return Photometric(factors.float(), ORDERS, torch.full((N,), grey), None, None, fused=True)


def dull(channels: int = 3) -> Tensor:
    """Colours so near to grey that no operation takes them out of bounds."""
    return 0.45 + 0.1 * torch.rand(N, channels, 6, 7, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("grey", [False, True])
def test_without_hues_it_is_exact_within_bounds(grey: bool) -> None:
    factors = 0.7 + 0.6 * torch.rand(N, 4, generator=torch.Generator().manual_seed(0))
    factors[:, HUE] = 0
    colours = drawn(factors, grey)
    expected = recolour(dull(), colours._replace(fused=False))
    torch.testing.assert_close(tint_fused(dull(), colours), expected, rtol=0, atol=1e-6)


def test_four_bands_have_no_hue() -> None:
    factors = torch.tensor([0.8, 1.2, 1.0, 0.0]).expand(N, 4)
    colours = drawn(factors)._replace(grayscale=None)
    expected = recolour(dull(4), colours._replace(fused=False))
    torch.testing.assert_close(tint_fused(dull(4), colours), expected, rtol=0, atol=1e-6)


def hue(turn: float) -> Tensor:
    """The matrix of a turn."""
    factors = torch.from_numpy(UNCHANGED).float().repeat(N, 1)
    factors[:, HUE] = turn
    matrix, offset = compose(torch.rand(N, 3), drawn(factors))
    assert not offset.any()
    return matrix[0]


def test_hues_turn_about_grey_and_a_third_takes_red_to_green() -> None:
    red, green, blue = torch.eye(3)
    torch.testing.assert_close(hue(1 / 3) @ red, green, rtol=0, atol=1e-6)
    torch.testing.assert_close(hue(-1 / 3) @ red, blue, rtol=0, atol=1e-6)
    torch.testing.assert_close(hue(0.1) @ torch.ones(3), torch.ones(3), rtol=0, atol=1e-6)
    torch.testing.assert_close(hue(0.07) @ hue(0.05), hue(0.12), rtol=0, atol=1e-6)


@pytest.mark.parametrize("turn", [0.1, -0.1])
def test_hues_turn_towards_torchvisions(turn: float) -> None:
    """On random colours, which are more saturated than pictures are."""
    pixels = torch.rand(N, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    factors = torch.from_numpy(UNCHANGED).float().repeat(N, 1)
    factors[:, HUE] = turn
    exact = recolour(pixels, drawn(factors)._replace(fused=False))
    assert (tint_fused(pixels, drawn(factors)) - exact).abs().mean() < 0.7 * (pixels - exact).abs().mean()


def test_one_by_one_is_all_at_once() -> None:
    colours = EVERYTHING.colours(np.random.default_rng(0).random((64, 13)))
    crops = torch.randint(0, 256, (64, 3, 16, 20), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    normalize = Normalize((0.5, 0.4, 0.3), (0.2, 0.3, 0.4), torch.device("cpu"))
    found = recolour_and_normalize(crops, colours, normalize.scale, normalize.shift)
    expected = normalize(recolour(crops / 255, colours) * 255)
    near_half = (recolour(crops / 255, colours._replace(solarize=None)) - 0.5).abs() < 1e-5
    torch.testing.assert_close(found[~near_half], expected[~near_half], rtol=0, atol=3e-5)
