"""Drawn images with boxes for tests: bright rectangles on grey noise, as COCO and as YOLO have them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

COLOURS = ((230, 40, 40), (40, 220, 60))  # of the classes
NAMES = ("red", "green")


class Drawn(NamedTuple):
    """An image uint8 [H, W, 3] and its rectangles (left, top, right, bottom, class)."""

    pixels: np.ndarray
    boxes: list[tuple[int, int, int, int, int]]


def draw(seed: int, side: int = 32, most: int = 2) -> Drawn:
    rng = np.random.default_rng(seed)
    pixels = rng.integers(100, 130, (side, side, 3)).astype(np.uint8)
    boxes = []
    for part in range(int(rng.integers(1, most + 1))):
        half = side // most  # one below the other, so that none hides another
        width, height = rng.integers(side // 4, side // 2, 2)
        height = min(int(height), half - 1)
        left, top = int(rng.integers(0, side - width)), part * half + int(rng.integers(0, half - height))
        number = int(rng.integers(len(NAMES)))
        pixels[top : top + height, left : left + width] = COLOURS[number]
        boxes.append((left, top, left + int(width), top + height, number))
    return Drawn(pixels, boxes)


def write_coco(home: Path, split: str, count: int, first: int = 0, side: int = 32) -> list[Drawn]:
    """Images in `home/split`, and their JSON beside."""
    drawn = [draw(first + number, side) for number in range(count)]
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    (home / split).mkdir(parents=True, exist_ok=True)
    for number, (pixels, boxes) in enumerate(drawn):
        Image.fromarray(pixels).save(home / split / f"{number:03}.png")
        images.append({"id": 10 + number, "file_name": f"{number:03}.png", "height": side, "width": side})
        for left, top, right, bottom, kind in boxes:
            box = [left, top, right - left, bottom - top]
            about = {"id": len(annotations), "image_id": 10 + number, "category_id": (7, 3)[kind], "bbox": box}
            annotations.append({**about, "iscrowd": 0, "area": box[2] * box[3]})
    categories = [{"id": 7, "name": "red"}, {"id": 3, "name": "green"}]
    content = {"images": images, "annotations": annotations, "categories": categories}
    (home / f"{split}.json").write_text(json.dumps(content), encoding="utf-8")
    return drawn


def write_yolo(home: Path, split: str, count: int, first: int = 0, side: int = 32) -> list[Drawn]:
    """Images in `home/images/split`, and text files in `home/labels/split`."""
    drawn = [draw(first + number, side) for number in range(count)]
    for folder in ("images", "labels"):
        (home / folder / split).mkdir(parents=True, exist_ok=True)
    for number, (pixels, boxes) in enumerate(drawn):
        Image.fromarray(pixels).save(home / "images" / split / f"{number:03}.png")
        lines = [
            f"{kind} {(left + right) / 2 / side} {(top + bottom) / 2 / side} {(right - left) / side} "
            f"{(bottom - top) / side}"
            for left, top, right, bottom, kind in boxes
        ]
        (home / "labels" / split / f"{number:03}.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    (home / "data.yaml").write_text("names: [red, green]\n", encoding="utf-8")
    return drawn
