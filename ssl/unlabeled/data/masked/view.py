"""Views of images with masks: resized at random, cut or padded to one size, flipped; every pixel keeps its class."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
import torch.nn.functional as F
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
    resized = F.interpolate(mask[None, None].float(), (how.height, how.width), mode="nearest-exact")
    return into(resized[0, 0].to(mask.dtype), how, shape, UNLABELLED)
