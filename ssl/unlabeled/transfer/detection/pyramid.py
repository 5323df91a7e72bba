"""A pyramid of feature maps from the last map of a plain transformer (Li et al. 2022, "Exploring Plain Vision
Transformer Backbones for Object Detection", section 3): detectron2's `SimpleFeaturePyramid`, with its names."""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

EPS, GROUPS = 1e-6, 32  # of the norms


class ChannelNorm(nn.Module):
    """Layer normalisation over the channels of maps [B, C, H, W], at every place by itself."""

    def __init__(self, channels: int, eps: float = EPS) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.ones(channels)), nn.Parameter(torch.zeros(channels))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        normal = F.layer_norm(x.movedim(1, -1), self.weight.shape, self.weight, self.bias, self.eps)
        return normal.movedim(-1, 1)


# norms by detectron2's names; the empty name = none, and convolutions have a bias instead
NORMS: dict[str, Callable[[int], nn.Module]] = {
    "LN": ChannelNorm,
    "GN": lambda channels: nn.GroupNorm(GROUPS, channels),
    "BN": nn.BatchNorm2d,
}


class NormedConv(nn.Conv2d):
    """A convolution that keeps the size of a map, and the norm behind it; a bias where there is no norm."""

    def __init__(self, inside: int, outside: int, kernel: int, norm: str) -> None:
        super().__init__(inside, outside, kernel, padding=kernel // 2, bias=not norm)
        self.norm = NORMS[norm](outside) if norm else None

    def forward(self, x: Tensor) -> Tensor:
        x = super().forward(x)
        return x if self.norm is None else self.norm(x)


class SimplePyramid(nn.Module):
    """Maps of several strides from a single one; each level has weights of its own.

    Args:
        width: channels of the map.
        channels: of every level.
        factors: of each level's resolution over that of the map, finest first: 4, 2, 1 or 0.5.
        norm: LN, GN, BN, or empty for none.
        stride: pixels of the picture per place of the map; names the levels, p2 has stride 4.
        top: whether a last level takes every second place of the coarsest one.

    Raises:
        ValueError: a factor is none of these, or a norm has no such name.
    """

    def __init__(
        self,
        width: int,
        channels: int = 256,
        factors: Sequence[float] = (4.0, 2.0, 1.0, 0.5),
        norm: str = "LN",
        stride: int = 16,
        top: bool = True,
    ) -> None:
        super().__init__()
        if norm and norm not in NORMS:
            raise ValueError(f"expected a norm of {', '.join(NORMS)} or none, found {norm!r}")
        self.out_channels, self.top = channels, top
        self.strides = [int(stride / factor) for factor in factors]
        for factor, level in zip(factors, map(level_of, self.strides), strict=True):
            layers, inside = _resized(width, factor, norm)
            convs = NormedConv(inside, channels, 1, norm), NormedConv(channels, channels, 3, norm)
            self.add_module(f"simfp_{level}", nn.Sequential(*layers, *convs))

    @property
    def names(self) -> list[str]:
        """The names of the levels without the last, which is a part of another."""
        return [f"p{level_of(stride)}" for stride in self.strides]

    def forward(self, x: Tensor) -> OrderedDict[str, Tensor]:
        """Levels p2, p3 ... of a map [B, D, h, w], the finest first."""
        maps = OrderedDict((name, cast("Tensor", self.get_submodule(f"simfp_{name[1:]}")(x))) for name in self.names)
        if self.top:
            last = level_of(self.strides[-1])
            maps[f"p{last + 1}"] = maps[f"p{last}"][:, :, ::2, ::2]
        return maps


def level_of(stride: int) -> int:
    """The number of the level of a stride: 2 for 4 pixels."""
    return int(math.log2(stride))


def _resized(width: int, factor: float, norm: str) -> tuple[list[nn.Module], int]:
    """Layers that change the resolution of a map of `width` channels, and the number of channels then."""
    if factor == 4:
        up = nn.ConvTranspose2d(width, width // 2, 2, 2), nn.ConvTranspose2d(width // 2, width // 4, 2, 2)
        between = [NORMS[norm](width // 2)] if norm else []
        return [up[0], *between, nn.GELU(), up[1]], width // 4
    if factor == 2:
        return [nn.ConvTranspose2d(width, width // 2, 2, 2)], width // 2
    if factor == 1:
        return [], width
    if factor == 0.5:
        return [nn.MaxPool2d(2)], width
    raise ValueError(f"expected factors of 4, 2, 1 or 0.5, found {factor:g}")
