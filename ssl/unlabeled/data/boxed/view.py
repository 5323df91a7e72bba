"""Views of images with boxes: resized at random, cut or padded to one size, flipped; the boxes move with them."""

from __future__ import annotations

from typing import Any, ClassVar, Literal, NamedTuple

import numpy as np
import torch
from pydantic import Field, field_validator, model_validator
from torch import Tensor
from torchvision.transforms.v2 import functional as tv
from torchvision.tv_tensors import BoundingBoxes

from unlabeled.data.label.boxes import Boxes
from unlabeled.data.view import photometric
from unlabeled.data.view.views import Crops, Interpolation, Positive, Probability, View, resize

PAD = 128  # value beyond the image, as detectron2 has it
LEAST = 1.0  # pixels of width and height that a box must keep
LARGEST = 4.0  # factor on the size


class Placed(NamedTuple):
    """How an image comes into a view.

    Attributes:
        height, width: that it is resized to, pixels.
        top, left: of the part that is cut out of it; what is beyond its bottom and right is padded.
        flip: whether it is turned round after that.
    """

    height: int
    width: int
    top: int
    left: int
    flip: bool


class BoxView(View, frozen=True, extra="forbid"):
    """Large-scale jitter (Ghiasi et al. 2021): an image is resized, its aspect kept, so that it fits into the view's
    size times a random factor. A part of the view's size is cut out at random where it is larger; where it is smaller,
    it lies at the top left and grey pads it. Then it is flipped, and colours change as in other views."""

    # fields of other views that boxes cannot follow, or that would do nothing here
    other: ClassVar[tuple[str, ...]] = (
        "count",
        "sizes",
        "ratio",
        "single_shot",
        "rand_augment",
        "erase",
        "mask",
    )

    scale: tuple[Positive, Positive] = Field(
        (0.5, 1.5), description=f"size of the resized image as a share of the view's, from and to; at most {LARGEST:g}"
    )
    interpolation: Interpolation = Field("bilinear", description="how the image is resized, antialiased")
    mosaic: Probability = Field(
        0.0, description="probability of four images in one view, about a centre in its middle half (YOLOv4)"
    )

    @field_validator("scale", "ratio", "blur_radius")
    @classmethod
    def _ordered(cls, bounds: tuple[float, float], info: Any) -> tuple[float, float]:
        if bounds[0] > bounds[1]:
            raise ValueError(f"expected [low, high], found {list(bounds)}")
        if info.field_name == "scale" and bounds[1] > LARGEST:
            raise ValueError(f"expected factors of at most {LARGEST:g} on the size, found {bounds[1]:g}")
        return bounds

    @model_validator(mode="after")
    def _boxes_can_follow(self) -> BoxView:
        for name in self.other:
            if (value := getattr(self, name)) != type(self).model_fields[name].default:
                raise ValueError(f"{name} is not for views with boxes: leave it out, found {value}")
        return self

    def extent(self) -> str:
        low, high = self.scale
        return f"resized by {low:g} to {high:g}" + (f", mosaic {self.mosaic:g}" if self.mosaic else "")

    def place(self, rng: np.random.Generator, image: tuple[int, int], shape: tuple[int, int]) -> Placed:
        """Draw how an image of (height, width) comes into a view of `shape`. Consumes a fixed number of draws."""
        factor, down, across, flipped = rng.random(4)
        low, high = self.scale
        return placed(image, shape, low + factor * (high - low), (down, across), flipped < self.flip)

    def drawn(
        self, image: Tensor, boxes: Boxes, rng: np.random.Generator, shape: tuple[int, int]
    ) -> tuple[Tensor, Boxes]:
        """A view of `shape` of a uint8 image [C, H, W], and the boxes that are left in it."""
        how = self.place(rng, (image.shape[-2], image.shape[-1]), shape)
        return move_image(image, how, shape, self.interpolation), move_boxes(boxes, image, how, shape)

    def finished(self, pixels: Tensor, rng: np.random.Generator) -> Crops:
        """A drawn view [C, height, width] with the colours that it will get on the device."""
        colours = self.colours(rng.random((1, photometric.DRAWS))) if self.recolours else None
        return Crops(pixels.unsqueeze(0), None, colours)


class Seen(NamedTuple):
    """An image as a detector sees it in evaluation."""

    pixels: Tensor  # uint8 [C, height, width]
    resized: tuple[int, int]  # (height, width) of the image in it, pixels
    size: tuple[int, int]  # (height, width) of the image itself

    def back(self, corners: Tensor) -> Tensor:
        """Boxes [n, 4] of the view in pixels of the image, cut to it."""
        scales = [own / seen for own, seen in zip(self.size, self.resized, strict=True)][::-1]
        limits = torch.tensor([*self.size[::-1], *self.size[::-1]], dtype=corners.dtype)
        return (corners * torch.tensor([*scales, *scales], dtype=corners.dtype)).clamp_min(0).minimum(limits)


def placed(
    image: tuple[int, int],
    shape: tuple[int, int],
    factor: float,
    share: tuple[float, float] = (0.0, 0.0),
    flip: bool = False,
) -> Placed:
    """An image of (height, width) resized to fit into `shape` times a factor; `share` of what does not fit into the
    view, down and across, is cut off at the top and at the left."""
    ratio = factor * min(side / own for side, own in zip(shape, image, strict=True))
    height, width = (max(1, round(side * ratio)) for side in image)
    top, left = (
        int(part * (max(0, side - room) + 1)) for part, side, room in zip(share, (height, width), shape, strict=True)
    )
    return Placed(height, width, top, left, flip)


def whole(image: Tensor, shape: tuple[int, int], interpolation: Interpolation) -> Seen:
    """The view of evaluation of a uint8 image [C, H, W]: all of it, as large as fits."""
    size = (image.shape[-2], image.shape[-1])
    how = placed(size, shape, 1.0)
    return Seen(move_image(image, how, shape, interpolation), (how.height, how.width), size)


def move_image(
    image: Tensor, how: Placed, shape: tuple[int, int], interpolation: Literal["bicubic", "bilinear"]
) -> Tensor:
    """A uint8 image [C, H, W] as it was placed: [C, *shape]."""
    resized = resize(image, (how.height, how.width), interpolation)
    part = resized[:, how.top : how.top + shape[0], how.left : how.left + shape[1]]
    below, right = shape[0] - part.shape[-2], shape[1] - part.shape[-1]
    part = torch.nn.functional.pad(part, (0, right, 0, below), value=PAD)
    return (part.flip(-1) if how.flip else part).contiguous()


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
