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


def write(
    home: Path, split: str, count: int, first: int = 0, height: int = 32, width: int = 32, below: str = "a"
) -> list[Drawn]:
    """Images in a folder below `home/split`, and their masks below `home/split_masks`."""
    drawn = [draw(first + number, height, width) for number in range(count)]
    folders = home / split / below, home / f"{split}_masks" / below
    for folder in folders:
        folder.mkdir(parents=True, exist_ok=True)
    for number, parts in enumerate(drawn):
        for folder, pixels in zip(folders, parts, strict=True):
            Image.fromarray(pixels).save(folder / f"{number:03}.png")
    return drawn
