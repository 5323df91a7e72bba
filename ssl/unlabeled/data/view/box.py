"""Random boxes of images (torchvision's RandomResizedCrop, MAE's single-shot crop)."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

CROP_ATTEMPTS = 10


class Box(NamedTuple):
    """A rectangle of an image, pixels."""

    top: int
    left: int
    height: int
    width: int


def random_box(
    uniform: np.ndarray, height: int, width: int, scale: tuple[float, float], ratio: tuple[float, float]
) -> Box:
    """The first of ten random boxes that fits, else the central box of the nearest aspect (torchvision's rule)."""
    for area, aspect, top, left in uniform:
        h, w = _random_size(area, aspect, height * width, scale, ratio)
        if 0 < w <= width and 0 < h <= height:
            return _placed(top, left, h, w, height, width)
    w = min(width, max(1, round(height * ratio[1])))
    h = min(height, max(1, round(width / ratio[0])))
    return Box((height - h) // 2, (width - w) // 2, h, w)


def first_box(
    uniform: np.ndarray, height: int, width: int, scale: tuple[float, float], ratio: tuple[float, float]
) -> Box:
    """The first random box, its sides cut to the image's (MAE, `util/crop.py`)."""
    area, aspect, top, left = uniform[0]
    h, w = _random_size(area, aspect, height * width, scale, ratio)
    return _placed(top, left, min(max(1, h), height), min(max(1, w), width), height, width)


def _random_size(
    area: float, aspect: float, pixels: int, scale: tuple[float, float], ratio: tuple[float, float]
) -> tuple[int, int]:
    """(height, width) from two draws in [0, 1) and the image's number of pixels."""
    low, high = np.log(ratio)
    target = pixels * (scale[0] + area * (scale[1] - scale[0]))
    exact = math.exp(low + aspect * (high - low))
    return round(math.sqrt(target / exact)), round(math.sqrt(target * exact))


def _placed(top: float, left: float, h: int, w: int, height: int, width: int) -> Box:
    """A box of h x w somewhere in an image of height x width, by two draws in [0, 1)."""
    return Box(int(top * (height - h + 1)), int(left * (width - w + 1)), h, w)
