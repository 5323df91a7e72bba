"""Views of images with boxes: resized at random, cut or padded to one size, flipped; the boxes move with them."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
import torch
from pydantic import Field
from torch import Tensor
from torchvision.transforms.v2 import functional as tv
from torchvision.tv_tensors import BoundingBoxes

from unlabeled.data.label.boxes import Boxes
from unlabeled.data.view.placed import Placed, PlacedView, move_image
from unlabeled.data.view.views import Probability

LEAST = 1.0  # pixels of width and height that a box must keep


class BoxView(PlacedView, frozen=True, extra="forbid"):
    """A placed view whose boxes move with it, or four of them in a mosaic."""

    follows: ClassVar[str] = "boxes"

    mosaic: Probability = Field(
        0.0, description="probability of four images in one view, about a centre in its middle half (YOLOv4)"
    )

    def extent(self) -> str:
        return super().extent() + (f", mosaic {self.mosaic:g}" if self.mosaic else "")

    def drawn(
        self, image: Tensor, boxes: Boxes, rng: np.random.Generator, shape: tuple[int, int]
    ) -> tuple[Tensor, Boxes]:
        """A view of `shape` of a uint8 image [C, H, W], and the boxes that are left in it."""
        how = self.place(rng, (image.shape[-2], image.shape[-1]), shape)
        return move_image(image, how, shape, self.interpolation), move_boxes(boxes, image, how, shape)


def move_boxes(boxes: Boxes, image: Tensor, how: Placed, shape: tuple[int, int]) -> Boxes:
    """Boxes of an image as it was placed: cut to the view, those that keep less than a pixel left out."""
    corners = BoundingBoxes(boxes.corners, format="XYXY", canvas_size=tuple(image.shape[-2:]))
    corners = tv.resize(corners, [how.height, how.width])
    # what is padded belongs to no object: boxes end where the image does
    corners = tv.clamp_bounding_boxes(corners)
    corners = tv.crop(corners, how.top, how.left, *shape)
    moved = torch.as_tensor(tv.horizontal_flip(corners) if how.flip else corners).as_subclass(Tensor)
    return kept(boxes._replace(corners=moved))


def kept(boxes: Boxes) -> Boxes:
    """Boxes with at least a pixel of width and height, those of crowds left out."""
    sides = boxes.corners[:, 2:] - boxes.corners[:, :2]
    return boxes.chosen((sides >= LEAST).all(1) & ~boxes.crowd)


Quarter = tuple[int, int, int, int]  # top, left, height, width


def quarters(centre: tuple[int, int], shape: tuple[int, int]) -> list[Quarter]:
    """The four rectangles about a centre (row, column) in a view, row by row."""
    (row, column), (height, width) = centre, shape
    return [
        (0, 0, row, column),
        (0, column, row, width - column),
        (row, 0, height - row, column),
        (row, column, height - row, width - column),
    ]


def centre_of(rng: np.random.Generator, shape: tuple[int, int]) -> tuple[int, int]:
    """A centre uniform in the middle half of a view."""
    row, column = (int(side / 4 + part * side / 2) for side, part in zip(shape, rng.random(2), strict=True))
    return max(1, row), max(1, column)


def mosaic(parts: list[tuple[Tensor, Boxes]], places: list[Quarter], shape: tuple[int, int]) -> tuple[Tensor, Boxes]:
    """Put views of four images [C, height, width], each of the size of its place, beside each other."""
    pixels = parts[0][0].new_empty(len(parts[0][0]), *shape)
    moved = []
    for (part, boxes), (top, left, height, width) in zip(parts, places, strict=True):
        pixels[:, top : top + height, left : left + width] = part
        moved.append(boxes._replace(corners=boxes.corners + torch.tensor([left, top, left, top])))
    return pixels, Boxes.joined(moved)
