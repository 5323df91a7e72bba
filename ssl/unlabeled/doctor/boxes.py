"""Boxes that are wrong by the images that they are in: outside of them, empty, or there twice."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from unlabeled.data.boxed.view import LEAST
from unlabeled.data.label.boxes import Boxes
from unlabeled.doctor.pictures import Survey

EDGE = 1.0  # pixels beyond an image that rounding may leave
KINDS = ("boxes_outside", "boxes_empty", "boxes_doubled")


def wrong_boxes(found: Survey) -> dict[str, NDArray[np.bool_]]:
    """Whether each readable image [n] has such boxes, by the kinds of them; nothing where the source has no boxes."""
    source = found.source
    if not source.boxed:
        return {}
    rows = zip(found.number.tolist(), found.height.tolist(), found.width.tolist(), strict=True)
    flags = [_kinds(source.boxes(number, height, width), height, width) for number, height, width in rows]
    return {kind: np.array([one[place] for one in flags], bool) for place, kind in enumerate(KINDS)}


def _kinds(boxes: Boxes, height: int, width: int) -> tuple[bool, bool, bool]:
    corners, limits = boxes.corners, torch.tensor([width, height])
    outside = (corners[:, :2] < -EDGE) | (corners[:, 2:] > limits + EDGE)
    empty = corners[:, 2:] - corners[:, :2] < LEAST
    named = torch.cat([corners, boxes.classes[:, None].float()], dim=1)
    return bool(outside.any()), bool(empty.any()), len(named.unique(dim=0)) < len(named)
