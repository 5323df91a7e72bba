"""Views of images with masks: resized at random, cut or padded to one size, flipped; every pixel keeps its class."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from unlabeled.data.view.placed import LARGEST, Placed, PlacedView, into, move_image
from unlabeled.data.view.views import Positive

UNLABELLED = -1  # the class of pixels that have none, and of those beyond the image


class MaskView(PlacedView, frozen=True, extra="forbid"):
    """A placed view whose mask moves with it; what is padded has no class."""

    follows: ClassVar[str] = "masks"

    scale: tuple[Positive, Positive] = Field(
        (0.5, 2.0), description=f"size of the resized image as a share of the view's, from and to; at most {LARGEST:g}"
    )

    def drawn(self, image: Tensor, mask: Tensor, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
        """A view of a uint8 image [C, H, W] and of its mask int16 [H, W]."""
        how = self.place(rng, (image.shape[-2], image.shape[-1]), self.shape)
        return move_image(image, how, self.shape, self.interpolation), move_mask(mask, how, self.shape)


def move_mask(mask: Tensor, how: Placed, shape: tuple[int, int]) -> Tensor:
    """A mask int16 [H, W] as its image was placed, int16 [*shape]: each pixel takes the one that its centre lies in."""
    # in whole numbers: a centre may lie on an edge
    sides = zip(mask.shape, (how.height, how.width), strict=True)
    rows, columns = ((2 * torch.arange(new) + 1) * old // (2 * new) for old, new in sides)
    return into(mask[rows][:, columns], how, shape, UNLABELLED)
