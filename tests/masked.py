"""Drawn images with masks for tests: bright rectangles on grey noise, of two classes beside the background."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

COLOURS = ((0, 0, 0), (230, 40, 40), (40, 220, 60))  # of the classes; the background is noise
IGNORED = 255


class Drawn(NamedTuple):
    """An image uint8 [H, W, 3] and its mask uint8 [H, W]; nobody labelled the first row."""

    pixels: np.ndarray
    mask: np.ndarray


def draw(seed: int, height: int = 32, width: int = 32) -> Drawn:
    rng = np.random.default_rng(seed)
    pixels = rng.integers(100, 130, (height, width, 3)).astype(np.uint8)
    mask = np.zeros((height, width), np.uint8)
    for number in (1, 2):
        tall, wide = rng.integers(height // 4, height // 2), rng.integers(width // 4, width // 2)
        top, left = rng.integers(0, height - tall), rng.integers(0, width - wide)
        pixels[top : top + tall, left : left + wide] = COLOURS[number]
        mask[top : top + tall, left : left + wide] = number
    mask[0] = IGNORED
    return Drawn(pixels, mask)


def write(home: Path, split: str, count: int, first: int = 0, height: int = 32, width: int = 32) -> list[Drawn]:
    """Images in `home/split/a`, and their masks in `home/split_masks/a`."""
    drawn = [draw(first + number, height, width) for number in range(count)]
    for folder in (split, f"{split}_masks"):
        (home / folder / "a").mkdir(parents=True, exist_ok=True)
    for number, (pixels, mask) in enumerate(drawn):
        Image.fromarray(pixels).save(home / split / "a" / f"{number:03}.png")
        Image.fromarray(mask).save(home / f"{split}_masks" / "a" / f"{number:03}.png")
    return drawn
