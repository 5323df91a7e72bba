"""Mixup (Zhang et al. 2018) and CutMix (Yun et al. 2019) of neighbouring images."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Mix(NamedTuple):
    """How each image is mixed with its neighbour: row 0 with 1, 2 with 3."""

    share: Tensor  # [B] float32, of the image itself
    box: Tensor  # [B, 4] int64, top, left, bottom and right of the box pasted from the neighbour; all 0 = none


def mix_images(images: Tensor, mix: Mix) -> Tensor:
    """Blend images [B, C, H, W] with their neighbours, or paste a box of them in; without a device sync."""
    other = neighbours(images)
    height, width = images.shape[-2:]
    top, left, bottom, right = mix.box.view(-1, 4, 1, 1, 1).unbind(1)
    y = torch.arange(height, device=images.device).view(-1, 1)
    x = torch.arange(width, device=images.device)
    inside = (y >= top) & (y < bottom) & (x >= left) & (x < right)
    # outside its box, an image that is cut keeps its pixels
    blend = torch.where(mix.box.any(1), 1.0, mix.share).to(images.dtype).view(-1, 1, 1, 1)
    return torch.where(inside, other, images * blend + other * (1 - blend))


def mix_targets(targets: Tensor, mix: Mix) -> Tensor:
    """Blend targets [B, classes] with those of their neighbours by the share."""
    share = mix.share.unsqueeze(1)
    return targets * share + neighbours(targets) * (1 - share)


def neighbours(x: Tensor) -> Tensor:
    """Swap the rows [B, ...] of each pair."""
    return x.unflatten(0, (-1, 2)).flip(1).flatten(0, 1)
