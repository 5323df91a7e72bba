"""Views: the boxes that are drawn, the pixels that are cut, both against torchvision."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from torch import Tensor
from torchvision.transforms import InterpolationMode, RandomResizedCrop
from torchvision.transforms.v2 import CenterCrop, Resize
from torchvision.transforms.v2 import functional as TF

from unlabeled.data.masks.random import Config as RandomMask
from unlabeled.data.view.box import Box
from unlabeled.data.view.views import Crop, View, center_crop

DRAWS = 2000


def picture(height: int, width: int, channels: int = 3) -> Tensor:
    """Smooth waves with noise on top."""
    rng = torch.Generator().manual_seed(height * 10_000 + width)
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    waves = torch.stack([((x * (c + 1) + y * 3) * 2) % 256 for c in range(channels)])
    noise = torch.randint(-40, 40, waves.shape, generator=rng)
    return (waves + noise).clamp(0, 255).to(torch.uint8)


def boxes(view: View, height: int, width: int) -> np.ndarray:
    rng = np.random.default_rng(0)
    return np.array([view.draw(rng, height, width).box for _ in range(DRAWS)])


def torchvision_boxes(view: View, height: int, width: int) -> np.ndarray:
    image = torch.empty(3, height, width)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        drawn = [RandomResizedCrop.get_params(image, list(view.scale), list(view.ratio)) for _ in range(DRAWS)]
    return np.array(drawn)


def features(drawn: np.ndarray, height: int, width: int) -> np.ndarray:
    """Area, log aspect, and how far down and right of what is possible: [draws, 4]."""
    top, left, h, w = drawn.T
    down, right = (top / np.maximum(1, height - h), left / np.maximum(1, width - w))
    return np.stack([h * w / (height * width), np.log(w / h), down, right], axis=1)


def distance(a: np.ndarray, b: np.ndarray) -> float:
    """Kolmogorov and Smirnov's: how far the two empirical distribution functions are apart."""
    points = np.concatenate([a, b])
    below = [np.searchsorted(np.sort(each), points, side="right") / len(each) for each in (a, b)]
    return float(np.abs(below[0] - below[1]).max())


@pytest.mark.parametrize(("height", "width"), [(500, 375), (300, 900), (97, 64)])
@pytest.mark.parametrize("scale", [(0.2, 1.0), (0.05, 0.4)])
def test_boxes_are_distributed_as_torchvisions(height: int, width: int, scale: tuple[float, float]) -> None:
    view = View(scale=scale)
    ours, theirs = (features(draw(view, height, width), height, width) for draw in (boxes, torchvision_boxes))
    # two equal distributions exceed this once in a hundred thousand draws of the seed
    limit = 2.47 * math.sqrt(2 / DRAWS)
    assert max(distance(a, b) for a, b in zip(ours.T, theirs.T, strict=True)) < limit


def test_boxes_keep_within_the_bounds() -> None:
    view = View(scale=(0.1, 0.6), ratio=(0.5, 1.5))
    height, width = 2000, 3000
    top, left, h, w = boxes(view, height, width).T
    area, log_aspect, down, right = features(boxes(view, height, width), height, width).T
    assert top.min() >= 0 and left.min() >= 0 and (top + h).max() <= height and (left + w).max() <= width
    assert 0.0999 < area.min() < 0.11 and 0.58 < area.max() < 0.6001
    assert math.log(0.499) < log_aspect.min() < -0.65 and 0.38 < log_aspect.max() < math.log(1.501)
    for place in (down, right):
        assert distance(place, np.linspace(0, 1, DRAWS)) < 0.04


def test_every_place_is_equally_likely() -> None:
    view = View(scale=(0.2, 0.2), ratio=(1.0, 1.0))
    top, left, h, w = boxes(view, 4, 5).T
    assert set(h) == set(w) == {2}
    # 3 x 4 places of a 2 x 2 box, the last row and column included
    counts = np.bincount(top * 4 + left, minlength=12)
    assert len(counts) == 12 and np.abs(counts - DRAWS / 12).max() < 4.5 * math.sqrt(DRAWS / 12)


@pytest.mark.parametrize(("height", "width"), [(1, 1), (2, 3), (1, 40), (33, 1), (7, 5)])
def test_boxes_of_tiny_pictures_are_inside(height: int, width: int) -> None:
    top, left, h, w = boxes(View(scale=(0.01, 1.0)), height, width).T
    assert min(top.min(), left.min()) >= 0 and min(h.min(), w.min()) >= 1
    assert (top + h).max() <= height and (left + w).max() <= width


@pytest.mark.parametrize(("height", "width"), [(10, 400), (401, 10), (33, 257)])
def test_a_picture_of_extreme_aspect_gives_torchvisions_central_box(height: int, width: int) -> None:
    view = View(scale=(0.9, 1.0))
    expected = torchvision_boxes(view, height, width)[0].tolist()
    assert list(view.draw(np.random.default_rng(0), height, width).box) == expected


def test_a_draw_consumes_the_same_whatever_the_picture() -> None:
    after = []
    for height, width in [(500, 375), (1, 1), (10, 400)]:
        rng = np.random.default_rng(7)
        View().draw(rng, height, width)
        after.append(rng.random())
    assert len(set(after)) == 1


@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
@pytest.mark.parametrize("size", [32, 96, (24, 56)])
@pytest.mark.parametrize("box", [Box(3, 5, 70, 90), Box(0, 0, 100, 120), Box(40, 11, 24, 31)])
@pytest.mark.parametrize("flip", [False, True])
def test_apply_is_torchvisions_resized_crop(size: Any, interpolation: Any, box: Box, flip: bool) -> None:
    view, image = View(size=size, interpolation=interpolation), picture(100, 120)
    expected = TF.resized_crop(
        image, *box, list(view.shape), interpolation=InterpolationMode(interpolation), antialias=True
    )
    expected = TF.horizontal_flip(expected) if flip else expected
    assert torch.equal(view.apply(image, Crop(box, flip)), expected)


@pytest.mark.parametrize(("flip", "expected"), [(0.0, 0), (0.5, DRAWS / 2), (1.0, DRAWS)])
def test_flips_are_as_frequent_as_asked(flip: float, expected: float) -> None:
    rng = np.random.default_rng(0)
    flips = sum(View(flip=flip).draw(rng, 50, 50).flip for _ in range(DRAWS))
    assert abs(flips - expected) < 5 * math.sqrt(DRAWS * flip * (1 - flip)) + 1e-9


def test_a_sample_is_its_draws_one_after_the_other() -> None:
    view = View(count=3, size=(32, 48), mask=RandomMask(ratio=0.5))
    image = picture(60, 80)
    pixels, mask, colours, erased, *_ = view.sample(image, np.random.default_rng(3), patch=16)
    assert pixels.shape == (3, 3, 32, 48) and pixels.dtype == torch.uint8
    assert mask is not None and mask.hidden.shape == (3, 6) and colours is None and erased is None
    rng = np.random.default_rng(3)
    for crop, hidden in zip(pixels, mask.hidden, strict=True):
        assert torch.equal(crop, view.apply(image, view.draw(rng, 60, 80)))
        assert torch.equal(hidden, RandomMask(ratio=0.5).draw(rng, (2, 3), 16).hidden)
    assert View(size=32).sample(image, rng, patch=16).mask is None


@pytest.mark.parametrize(
    ("height", "width"),
    [
        (256, 256),
        (256, 347),
        (347, 256),
        (500, 375),
        (300, 451),
        (451, 300),
        (100, 80),
        (223, 301),
        (31, 640),
    ],
)
@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
def test_center_crop_is_torchvisions_resize_and_center_crop(height: int, width: int, interpolation: Any) -> None:
    image = picture(height, width)
    resized = Resize(256, InterpolationMode(interpolation), antialias=True)(image)
    assert torch.equal(center_crop(image, (224, 224), 0.875, interpolation), CenterCrop(224)(resized))


@pytest.mark.parametrize(("height", "width"), [(100, 80), (64, 200), (33, 47)])
def test_center_crop_to_a_rectangle_keeps_the_aspect(height: int, width: int) -> None:
    ramp = torch.arange(width).mul(255 / (width - 1)).to(torch.uint8).expand(1, height, width)
    crop = center_crop(ramp, (32, 96), 1.0, "bilinear")
    assert crop.shape == (1, 32, 96)
    scale = max(32 / height, 96 / width)
    slope = (crop[0, 0, 80].item() - crop[0, 0, 16].item()) / 64
    assert slope == pytest.approx(255 / (width * scale), rel=0.05)


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({"scale": (0.8, 0.2)}, r"expected \[low, high\], found \[0.8, 0.2\]"),
        ({"ratio": (2.0, 1.0)}, r"expected \[low, high\], found \[2.0, 1.0\]"),
        ({"scale": (0.2, 1.5)}, "cannot exceed the picture: expected at most 1, found 1.5"),
        ({"scale": (0.0, 1.0)}, "greater than 0"),
        ({"ratio": (1.0, math.inf)}, "finite"),
        ({"flip": 1.1}, "less than or equal to 1"),
        ({"flip": math.nan}, "flip"),
        ({"count": 0}, "greater than or equal to 1"),
        ({"size": (224, 0)}, "greater than or equal to 1"),
        ({"interpolation": "nearest"}, "bicubic"),
        ({"crop": 1}, "Extra inputs"),
        ({"mask": {"name": "random", "ratio": 0.0}}, "greater than 0"),
        ({"mask": {"name": "random", "ratio": 1.0}}, "less than 1"),
        ({"mask": {"name": "random", "ratio": math.nan}}, "mask"),
    ],
)
def test_impossible_views_are_refused(fields: dict[str, Any], text: str) -> None:
    with pytest.raises(ValidationError, match=text):
        View(**fields)


@pytest.mark.parametrize(
    ("view", "text"),
    [
        (View(size=100), "patch_size 16 does not divide a crop of 100x100 pixels"),
        (View(size=(224, 100)), "patch_size 16 does not divide a crop of 224x100 pixels"),
        (View(mask=RandomMask(unit=24)), "mask unit of 24 pixels is not a multiple of the patch size 16"),
        (
            View(size=(224, 208), mask=RandomMask(unit=32)),
            "unit of 32 pixels does not divide a crop of 224x208",
        ),
        (View(size=32, mask=RandomMask(ratio=0.8)), "mask ratio of 0.8 hides every unit of a 32x32 crop"),
    ],
)
def test_views_that_do_not_fit_the_patches_are_refused(view: View, text: str) -> None:
    with pytest.raises(ValueError, match=text):
        view.check(16)
    View(size=(224, 96), mask=RandomMask(unit=32)).check(16)
