"""A decoder as CrossMAE's, cheaper: all blocks read the encoder's last tokens (after Fu et al. 2024, section 3.2)."""

from __future__ import annotations

import math
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from unlabeled.backbone.encoder import Encoder, Tokens
from unlabeled.nn.init import xavier_
from unlabeled.nn.patches import PatchMask, gather
from unlabeled.nn.positions import resample, sincos_2d, with_prefix
from unlabeled.pretrain.decoder import CrossBlock, Decoder, DecoderConfig


class Config(DecoderConfig, frozen=True):
    """Queries at a share of the hidden patches attend to the visible tokens only: the cheapest."""

    name: Literal["cross_light"] = "cross_light"
    share: float = Field(0.25, gt=0, le=1, description="share of the hidden patches to predict")

    def build(self, encoder: Encoder, out: int, hidden: float | None = None) -> LightDecoder:
        return LightDecoder(encoder, out, self)


class LightDecoder(Decoder):
    """Mask tokens at a random share of the hidden patches read the visible tokens by cross-attention.

    There is no attention among mask tokens, so predicting fewer of them changes no prediction and saves their whole
    cost. Unlike `cross`, CrossMAE's own, it has no weighting of encoder blocks, and narrows their tokens first.
    """

    def __init__(self, encoder: Encoder, out: int, config: Config) -> None:
        super().__init__()
        width, self.share, self.grid = config.width, config.share, encoder.native_grid
        self.embed = nn.Linear(encoder.width, width)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, width))
        self.positions = nn.Parameter(with_prefix(sincos_2d(width, self.grid), 0), requires_grad=False)
        self.memory_norm = nn.LayerNorm(width, config.norm_eps)
        shape = config.heads, config.mlp_ratio, config.norm_eps
        self.blocks = nn.ModuleList(CrossBlock(width, *shape) for _ in range(config.depth))
        self.norm = nn.LayerNorm(width, config.norm_eps)
        self.head = nn.Linear(width, out)
        xavier_(self)
        nn.init.normal_(self.mask_token, std=0.02)

    def predicts(self, mask: PatchMask) -> Tensor:
        _, drop = mask.indices()
        return drop[:, : math.ceil(self.share * drop.shape[1])]

    def forward(self, tokens: Tokens, mask: PatchMask, index: Tensor | None = None) -> Tensor:
        index = self.predicts(mask) if index is None else index
        memory = self.memory_norm(self.embed(torch.cat([tokens.prefix, tokens.patches], dim=1)))
        table = resample(self.positions, self.grid, tokens.grid).expand(len(index), -1, -1)
        x = self.mask_token + gather(table, index)
        for block in self.blocks:
            x = block(x, memory)
        return self.head(self.norm(x))
