"""SparK's decoder: a U-Net on maps whose gaps are filled by mask tokens (Tian et al. 2023, section 3.2)."""

from __future__ import annotations

from itertools import pairwise
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from unlabeled.backbone.masked import Level, Visible
from unlabeled.errors import UserError
from unlabeled.nn.batchnorm import BatchNorm
from unlabeled.nn.init import cut_normal_
from unlabeled.pretrain.map_decoder import MapDecoder, MapDecoderConfig


class Config(MapDecoderConfig, frozen=True):
    """A U-Net that doubles the resolution and halves the width in every block (SparK)."""

    name: Literal["unet"] = "unet"
    width: int = Field(768, ge=2, le=8192, description="channels of the first block")

    def build(self, levels: list[Level], channels: int, batch_norm: bool) -> UNet:
        return UNet(levels, channels, self.width, batch_norm)


class Densify(nn.Module):
    """One map of an encoder for the decoder: normalised where visible, a mask token elsewhere, then projected."""

    def __init__(self, width: int, out: int, kernel: int, batch_norm: bool) -> None:
        super().__init__()
        self.norm = BatchNorm(width) if batch_norm else nn.LayerNorm(width, 1e-6)
        self.token = nn.Parameter(torch.empty(width))
        same = kernel == 1 and width == out
        self.project = nn.Identity() if same else nn.Conv2d(width, out, kernel, padding=kernel // 2)
        cut_normal_(self.token)

    def forward(self, x: Tensor, visible: Visible) -> Tensor:
        """A map [B, D, H, W] as the decoder adds it [B, out, H, W]."""
        return self.project(self.filled(x, visible))

    def filled(self, x: Tensor, visible: Visible) -> Tensor:
        """The map with mask tokens in its gaps."""
        return visible.like(x, self.norm(visible.seen(x)), self.token)


class Block(nn.Module):
    """Twice the resolution, half the width: official `UNetBlock`."""

    def __init__(self, width: int, out: int) -> None:
        super().__init__()
        self.up = nn.ConvTranspose2d(width, width, 4, stride=2, padding=1)
        self.convolutions = nn.Sequential(
            nn.Conv2d(width, width, 3, padding=1, bias=False),
            BatchNorm(width),
            nn.ReLU6(),
            nn.Conv2d(width, out, 3, padding=1, bias=False),
            BatchNorm(out),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.convolutions(self.up(x))


class UNet(MapDecoder):
    """Official `LightDecoder` with the layers that feed it; the last blocks, finer than any map, get none."""

    def __init__(self, levels: list[Level], channels: int, width: int, batch_norm: bool) -> None:
        super().__init__()
        halvings = levels[0].stride.bit_length() - 1
        if levels[0].stride != 2**halvings or width < 2**halvings:
            raise UserError(
                f"method.decoder: a unet of width {width} cannot rebuild pixels from a stride of {levels[0].stride}: "
                "expected a power of 2, and at least as many channels. Set method.decoder.width, or name single."
            )
        widths = [width >> number for number in range(halvings + 1)]
        self.blocks = nn.ModuleList(Block(*pair) for pair in pairwise(widths))
        self.head = nn.Conv2d(widths[-1], channels, 1)
        self._initialise()
        self.densify = nn.ModuleList(
            Densify(level.width, out, 3 if number else 1, batch_norm)
            for number, (level, out) in enumerate(zip(levels, widths, strict=False))
        )

    def _initialise(self) -> None:
        for part in self.modules():
            if isinstance(part, nn.ConvTranspose2d):
                nn.init.kaiming_normal_(part.weight, mode="fan_out", nonlinearity="relu")
            elif isinstance(part, nn.Conv2d):
                nn.init.trunc_normal_(part.weight, std=0.02)
            if isinstance(part, nn.Conv2d | nn.ConvTranspose2d) and part.bias is not None:
                nn.init.zeros_(part.bias)

    def forward(self, maps: list[Tensor], visible: Visible) -> Tensor:
        x: Tensor | None = None
        for number, block in enumerate(self.blocks):
            if number < len(maps):
                dense = self.densify[number](maps[number], visible)
                x = dense if x is None else x + dense
            x = block(x)
        return self.head(x)
