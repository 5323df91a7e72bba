"""Mixup (Zhang et al. 2018) and CutMix (Yun et al. 2019) of neighbouring pictures, as tensors say how."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Mix(NamedTuple):
    """How pictures are mixed, each with its neighbour: row 0 with 1, 2 with 3.

    Attributes:
        share: [B] float32, share of the own picture.
        box: [B, 4] int64, top, left, bottom and right of what is pasted from the neighbour; all 0 = nothing is.
    """

    share: Tensor
    box: Tensor


def mix_images(images: Tensor, mix: Mix) -> Tensor:
    """Images [B, C, H, W], blended with their neighbours or with a box of them pasted in. Never waits for a device."""
    other = neighbours(images)
    height, width = images.shape[-2:]
    top, left, bottom, right = mix.box.view(-1, 4, 1, 1, 1).unbind(1)
    y = torch.arange(height, device=images.device).view(-1, 1)
    x = torch.arange(width, device=images.device)
    inside = (y >= top) & (y < bottom) & (x >= left) & (x < right)
    cut = mix.box.any(1)
    # a picture that is cut keeps all of its other pixels
    blend = torch.where(cut, 1.0, mix.share).to(images.dtype).view(-1, 1, 1, 1)
    return torch.where(inside, other, images * blend + other * (1 - blend))


def mix_targets(targets: Tensor, mix: Mix) -> Tensor:
    """Targets [B, classes], each blended with its neighbour's by the share."""
    share = mix.share.unsqueeze(1)
    return targets * share + neighbours(targets) * (1 - share)


def neighbours(x: Tensor) -> Tensor:
    """Rows [B, ...] with each pair swapped."""
    return x.unflatten(0, (-1, 2)).flip(1).flatten(0, 1)
