"""Classes of pixels drawn on images."""

from __future__ import annotations

import colorsys

import torch
from torch import Tensor

from unlabeled.data.view.views import resize
from unlabeled.evaluate.segmentation_heads import nearest
from unlabeled.look.thumbnails import thumbnail

TURN = 0.61803398875  # of the colour circle from one class to the next: neighbours differ, however many there are
MIXED = 0.6  # share of a class's colour in a pixel


def colours(classes: int) -> Tensor:
    """A colour for every class, uint8 [classes, 3]; the first one is dark."""
    rest = [colorsys.hsv_to_rgb(TURN * number % 1, 0.85, 1.0) for number in range(classes - 1)]
    return (255 * torch.tensor([(0.1, 0.1, 0.15), *rest])).round().to(torch.uint8)


def beside(image: Tensor, true: Tensor, found: Tensor, classes: int, side: int) -> Tensor:
    """Three squares next to each other, uint8 [3, side, 3 side]: a uint8 image [C, H, W], with the classes that are
    there [H, W], and with those that were found. Pixels without a class stay as they are."""
    scale = side / max(image.shape[-2:])
    height, width = (max(1, round(length * scale)) for length in image.shape[-2:])
    shown = image[:3] if image.shape[0] >= 3 else image[:1].expand(3, -1, -1)
    small = resize(shown.contiguous(), (height, width), "bilinear")
    drawn = [small, *(tinted(small, nearest(mask, (height, width)), classes) for mask in (true, found))]
    return torch.cat([thumbnail(one, side) for one in drawn], dim=-1)


def tinted(image: Tensor, mask: Tensor, classes: int) -> Tensor:
    """A uint8 image [3, H, W] in the colours of the classes of a mask [H, W]."""
    colour = colours(classes)[mask.long().clamp_min(0)].permute(2, 0, 1).float()
    mixed = MIXED * colour + (1 - MIXED) * image.float()
    return torch.where(mask < 0, image, mixed.round().to(torch.uint8))


def levels(images: Tensor, mask: Tensor, classes: int) -> Tensor:
    """Classes [B, H, W] as brightness from the least to the most in normalised images [B, C, H, W], none at all the
    darkest, in their shape."""
    low, high = images.amin(), images.amax()
    share = (mask.unsqueeze(1) + 1) / classes
    return (low + share * (high - low)).expand_as(images)
