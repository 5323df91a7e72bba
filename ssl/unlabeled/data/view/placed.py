"""Views that place a whole image: resized at random, cut or padded to one size, flipped; what lies on it can follow."""

from __future__ import annotations

from abc import ABC
from typing import Any, ClassVar, Literal, NamedTuple

import numpy as np
import torch
from pydantic import Field, field_validator, model_validator
from torch import Tensor

from unlabeled.data.view import photometric
from unlabeled.data.view.views import Crops, Interpolation, Positive, View, resize

PAD = 128  # value beyond the image, as detectron2 has it
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


class PlacedView(View, ABC, frozen=True, extra="forbid"):
    """Large-scale jitter (Ghiasi et al. 2021): an image is resized, its aspect kept, so that it fits into the view's
    size times a random factor. A part of the view's size is cut out at random where it is larger; where it is smaller,
    it lies at the top left and grey pads it. Then it is flipped, and colours change as in other views."""

    follows: ClassVar[str]  # what moves with the image, in words
    # fields of other views that this cannot follow, or that would do nothing here
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

    @field_validator("scale", "ratio", "blur_radius")
    @classmethod
    def _ordered(cls, bounds: tuple[float, float], info: Any) -> tuple[float, float]:
        if bounds[0] > bounds[1]:
            raise ValueError(f"expected [low, high], found {list(bounds)}")
        if info.field_name == "scale" and bounds[1] > LARGEST:
            raise ValueError(f"expected factors of at most {LARGEST:g} on the size, found {bounds[1]:g}")
        return bounds

    @model_validator(mode="after")
    def _it_can_follow(self) -> PlacedView:
        for name in self.other:
            if (value := getattr(self, name)) != type(self).model_fields[name].default:
                raise ValueError(f"{name} is not for views with {self.follows}: leave it out, found {value}")
        return self

    def extent(self) -> str:
        low, high = self.scale
        return f"resized by {low:g} to {high:g}"

    def place(self, rng: np.random.Generator, image: tuple[int, int], shape: tuple[int, int]) -> Placed:
        """Draw how an image of (height, width) comes into a view of `shape`. Consumes a fixed number of draws."""
        factor, down, across, flipped = rng.random(4)
        low, high = self.scale
        return placed(image, shape, low + factor * (high - low), (down, across), flipped < self.flip)

    def finished(self, pixels: Tensor, rng: np.random.Generator) -> Crops:
        """A drawn view [C, height, width] with the colours that it will get on the device."""
        colours = self.colours(rng.random((1, photometric.DRAWS))) if self.recolours else None
        return Crops(pixels.unsqueeze(0), None, colours)


class Seen(NamedTuple):
    """An image as a network sees it in evaluation."""

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
    return into(resize(image, (how.height, how.width), interpolation), how, shape, PAD)


def into(resized: Tensor, how: Placed, shape: tuple[int, int], pad: int) -> Tensor:
    """A resized image or mask [..., h, w] cut, padded with a value and flipped as it was placed: [..., *shape]."""
    part = resized[..., how.top : how.top + shape[0], how.left : how.left + shape[1]]
    below, right = shape[0] - part.shape[-2], shape[1] - part.shape[-1]
    part = torch.nn.functional.pad(part, (0, right, 0, below), value=pad)
    return (part.flip(-1) if how.flip else part).contiguous()
