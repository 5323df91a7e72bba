"""CrossMAE's decoder: mask tokens read the visible tokens by cross-attention (Fu et al. 2024, section 3.2)."""

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
from unlabeled.pretrain.decoder import Decoder, DecoderConfig, attention


class Config(DecoderConfig, frozen=True):
    """Queries at a share of the hidden patches attend to the visible tokens only (CrossMAE): cheaper."""

    name: Literal["cross"] = "cross"
    width: int = Field(512, ge=4, multiple_of=4, description="token width")
    depth: int = Field(8, ge=1, description="number of blocks")
    heads: int = Field(16, ge=1, description="attention heads")
    mlp_ratio: float = Field(4.0, ge=0.25, le=64, description="width of a block's MLP over the token width")
    share: float = Field(0.25, gt=0, le=1, description="share of the hidden patches to predict")

    def build(self, encoder: Encoder, out: int) -> CrossDecoder:
        return CrossDecoder(encoder, out, self)


class CrossBlock(nn.Module):
    """Pre-norm block whose queries attend to a memory instead of to each other."""

    def __init__(self, width: int, heads: int, mlp_ratio: float = 4.0, norm_eps: float = 1e-6) -> None:
        from timm.layers import Mlp

        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width, norm_eps), nn.LayerNorm(width, norm_eps)
        self.query = nn.Linear(width, width)
        self.key_value = nn.Linear(width, 2 * width)
        self.proj = nn.Linear(width, width)
        self.mlp = Mlp(width, int(width * mlp_ratio))

    def forward(self, x: Tensor, memory: Tensor) -> Tensor:
        """Queries x [B, M, D] over memory [B, K, D]: [B, M, D]."""
        key, value = self.key_value(memory).chunk(2, dim=-1)
        x = x + self.proj(attention(self.query(self.norm1(x)), key, value, self.heads))
        return x + self.mlp(self.norm2(x))


class CrossDecoder(Decoder):
    """Mask tokens at a random share of the hidden patches read the visible tokens by cross-attention.

    Follows CrossMAE (Fu et al. 2024, section 3.2) without its weighting of encoder blocks: there is no attention
    among mask tokens, so predicting fewer of them changes no prediction and saves their whole cost.
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
