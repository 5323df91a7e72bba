"""Boxes drawn on images."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from unlabeled.look.thumbnails import thumbnail

TRUE, FOUND = (46, 204, 113), (231, 76, 60)  # colours of what is there and of what was found
SHOWN = 0.3  # least score of a box that is drawn


def beside(image: Tensor, true: Tensor, found: Tensor, labels: Sequence[str], side: int) -> Tensor:
    """Two squares next to each other, uint8 [3, side, 2 side]: a uint8 image [C, H, W] with the boxes that are there
    [n, 4], and with those that were found [m, 4], which have labels."""
    from torchvision.utils import draw_bounding_boxes

    large, scale = thumbnail(image, side), side / max(image.shape[-2:])
    edges = [(side - max(1, round(length * scale))) // 2 for length in image.shape[-2:]]
    shift = torch.tensor([edges[1], edges[0]] * 2)
    boxes = [one * scale + shift if len(one) else one.new_zeros(0, 4) for one in (true, found)]
    left = draw_bounding_boxes(large, boxes[0], colors=TRUE, width=2) if len(true) else large
    right = draw_bounding_boxes(large, boxes[1], list(labels), FOUND, width=2) if len(found) else large
    return torch.cat([left, right], dim=-1)


def framed(images: Tensor, boxes: Sequence[Tensor]) -> Tensor:
    """Normalised images [B, C, H, W] with a bright frame of a pixel about each of their boxes [n, 4]."""
    drawn, (height, width) = images.clone(), images.shape[-2:]
    bright = images.amax()
    for image, own in zip(drawn, boxes, strict=True):
        for left, top, right, bottom in own.round().long().tolist():
            columns = slice(max(left, 0), min(right, width - 1) + 1)
            rows = slice(max(top, 0), min(bottom, height - 1) + 1)
            for row in {min(max(top, 0), height - 1), min(bottom, height - 1)}:
                image[:, row, columns] = bright
            for column in {min(max(left, 0), width - 1), min(right, width - 1)}:
                image[:, rows, column] = bright
    return drawn
