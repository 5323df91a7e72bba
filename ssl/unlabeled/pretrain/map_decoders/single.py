"""FCMAE's decoder: one ConvNeXt V2 block on the deepest map alone (Woo et al. 2023, section 3.1)."""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from unlabeled.backbone.masked import Level, Visible
from unlabeled.nn.init import truncated_normal_
from unlabeled.nn.patches import unpatchify
from unlabeled.pretrain.map_decoder import MapDecoder, MapDecoderConfig


class Config(MapDecoderConfig, frozen=True):
    """ConvNeXt V2 blocks on the deepest map, and a linear layer to the pixels of each cell (FCMAE): cheaper."""

    name: Literal["single"] = "single"
    width: int = Field(512, ge=2, le=8192, description="channels of its blocks")
    depth: int = Field(1, ge=1, le=64, description="number of blocks")

    def build(self, levels: list[Level], channels: int, batch_norm: bool) -> Single:
        return Single(levels[0], channels, self)


class Single(MapDecoder):
    """Visible cells projected, mask tokens between them, blocks over both, a linear layer to pixels."""

    def __init__(self, level: Level, channels: int, config: Config) -> None:
        from timm.models.convnext import ConvNeXtBlock

        super().__init__()
        self.stride = level.stride
        self.embed = nn.Linear(level.width, config.width)
        self.token = nn.Parameter(torch.empty(config.width))
        self.blocks = nn.Sequential(
            *(ConvNeXtBlock(config.width, ls_init_value=None, use_grn=True) for _ in range(config.depth))
        )
        self.head = nn.Linear(config.width, level.stride**2 * channels)
        truncated_normal_(self)
        nn.init.normal_(self.token, std=0.02)

    def forward(self, maps: list[Tensor], visible: Visible) -> Tensor:
        x = self.blocks(visible.like(maps[0], self.embed(visible.seen(maps[0])), self.token))
        return unpatchify(self.head(x.permute(0, 2, 3, 1).flatten(1, 2)), self.stride, visible.grid)
