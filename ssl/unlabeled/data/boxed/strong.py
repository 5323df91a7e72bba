"""Strong views of images whose boxes somebody else finds: changed in colour, moved, and with squares erased.

What was done to an image is a matrix [3, 3] of points (x, y, 1) in pixels, from the image to the view.
"""

from __future__ import annotations

import math
from typing import Annotated

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from pydantic import Field, field_validator
from torch import Tensor

from unlabeled.data.boxed.view import BoxView
from unlabeled.data.view.placed import PAD, Placed, move_image

Matrix = NDArray[np.float64]
Share = Annotated[float, Field(ge=0, le=1)]
Angle = Annotated[float, Field(ge=0, lt=90)]


class StrongView(BoxView, frozen=True, extra="forbid"):
    """A view of images with boxes to which one of a shift, a turn and a shear is done, and in which squares are grey
    (Soft Teacher, its appendix)."""

    shift: Share = Field(0.1, description="of the view at most, as a share of its sides")
    rotate: Angle = Field(30.0, description="of the view at most, degrees")
    shear: Angle = Field(30.0, description="of the view at most, degrees")
    erasings: tuple[int, int] = Field((1, 5), description="squares that are made grey, from and to")
    erased: Share = Field(0.2, description="side of such a square at most, as a share of the view's sides")

    @field_validator("erasings")
    @classmethod
    def _counts(cls, counts: tuple[int, int]) -> tuple[int, int]:
        if not 0 <= counts[0] <= counts[1]:
            raise ValueError(f"expected [from, to], both at least 0, found {list(counts)}")
        return counts

    def seen(self, image: Tensor, rng: np.random.Generator) -> tuple[Tensor, Matrix]:
        """A view of a uint8 image [C, H, W], and its matrix. Consumes a fixed number of draws."""
        size = (image.shape[-2], image.shape[-1])
        how, change = self.place(rng, size, self.shape), self.change(rng.random(3))
        pixels = warped(move_image(image, how, self.shape, self.interpolation), change)
        return self.with_squares(pixels, rng.random((self.erasings[1] + 1, 4))), change @ matrix_of(
            how, size, self.shape
        )

    def change(self, uniform: NDArray[np.float64]) -> Matrix:
        """The matrix of a shift, of a turn or of a shear about the centre, from three draws in [0, 1)."""
        height, width = self.shape
        kind, (x, y) = int(3 * uniform[0]), 2 * uniform[1:] - 1
        if kind == 0:
            return _shift(x * self.shift * width, y * self.shift * height)
        if kind == 1:
            angle = math.radians(x * self.rotate)
            linear = [[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]]
        else:
            slope = math.tan(math.radians(x * self.shear))
            linear = [[1, slope], [0, 1]] if y < 0 else [[1, 0], [slope, 1]]
        about = np.eye(3)
        about[:2, :2] = linear
        return _shift(width / 2, height / 2) @ about @ _shift(-width / 2, -height / 2)

    def with_squares(self, pixels: Tensor, uniform: NDArray[np.float64]) -> Tensor:
        """Make squares of a view grey: how many they are, the first draw says, and each row after it side and place."""
        height, width = pixels.shape[-2:]
        low, high = self.erasings
        for side, top, left, _ in uniform[1 : 1 + low + int(uniform[0, 0] * (high - low + 1))]:
            rows, columns = (round(side * self.erased * whole) for whole in (height, width))
            down, across = int(top * (height - rows + 1)), int(left * (width - columns + 1))
            pixels[:, down : down + rows, across : across + columns] = PAD
        return pixels


def matrix_of(how: Placed, image: tuple[int, int], shape: tuple[int, int]) -> Matrix:
    """The matrix of an image of (height, width) that was placed in a view of `shape`."""
    resized = np.diag([how.width / image[1], how.height / image[0], 1.0])
    found = _shift(-how.left, -how.top) @ resized
    return _shift(shape[1], 0) @ np.diag([-1.0, 1.0, 1.0]) @ found if how.flip else found


def warped(pixels: Tensor, matrix: Matrix) -> Tensor:
    """A uint8 view [C, H, W] moved by a matrix, grey where nothing comes to lie; sampled linearly."""
    height, width = pixels.shape[-2:]
    y, x = torch.meshgrid(torch.arange(height) + 0.5, torch.arange(width) + 0.5, indexing="ij")
    points = torch.stack([x, y, torch.ones_like(x)], -1).double() @ torch.from_numpy(np.linalg.inv(matrix)).T
    grid = points[..., :2] * torch.tensor([2 / width, 2 / height]) - 1
    found = F.grid_sample((pixels.float() - PAD)[None], grid[None].float(), align_corners=False)[0]
    return (found + PAD).round().clamp(0, 255).to(torch.uint8)


def _shift(x: float, y: float) -> Matrix:
    return np.array([[1.0, 0.0, x], [0.0, 1.0, y], [0.0, 0.0, 1.0]])
