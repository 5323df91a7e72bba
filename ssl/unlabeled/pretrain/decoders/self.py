"""MAE's decoder: self-attention over visible and mask tokens (He et al., CVPR 2022, section 3)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from unlabeled.backbone.encoder import Encoder, Tokens
from unlabeled.nn.init import xavier_
from unlabeled.nn.patches import PatchMask, gather
from unlabeled.nn.positions import resample, sincos_2d, with_prefix
from unlabeled.pretrain.decoder import Decoder, DecoderConfig, attention


class Config(DecoderConfig, frozen=True):
    """MAE's decoder: self-attention over visible and mask tokens."""

    name: Literal["self"] = "self"

    def build(self, encoder: Encoder, out: int, hidden: float | None = None) -> SelfDecoder:
        return SelfDecoder(encoder, out, self)


class Parts(NamedTuple):
    """A sequence of mask tokens that all images share, and the visible tokens of each image."""

    gaps: Tensor  # mask tokens at every place [1, N, D]
    seen: Tensor  # visible tokens [B, K, D]
    places: Tensor  # of the visible tokens in the sequence [B, K]

    def whole(self, each: Callable[[Tensor], Tensor] = lambda part: part) -> Tensor:
        """Apply a token-wise function to mask tokens once for the batch and to visible tokens per image, then assemble
        the sequence [B, N, ...]."""
        gaps, seen = each(self.gaps), each(self.seen)
        return gaps.expand(len(seen), -1, -1).scatter(1, self.places.unsqueeze(-1).expand_as(seen), seen)


class SelfAttention(nn.Module):
    """Multi-head self-attention; parameters are named as in timm."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, qkv: Tensor, index: Tensor | None = None) -> Tensor:
        """Attend by queries, keys and values [B, N, 3 D], at all tokens or at `index` [B, M] alone."""
        query, key, value = qkv.chunk(3, dim=-1)
        query = query if index is None else gather(query, index)
        return self.proj(attention(query, key, value, self.heads))


class SelfBlock(nn.Module):
    """Pre-norm transformer block as timm's `Block`, but the output can be computed at some tokens only."""

    def __init__(self, width: int, heads: int, mlp_ratio: float = 4.0, norm_eps: float = 1e-6) -> None:
        from timm.layers import Mlp

        super().__init__()
        self.norm1 = nn.LayerNorm(width, norm_eps)
        self.attn = SelfAttention(width, heads)
        self.norm2 = nn.LayerNorm(width, norm_eps)
        self.mlp = Mlp(width, int(width * mlp_ratio))

    def forward(self, x: Tensor, index: Tensor | None = None, parts: Parts | None = None) -> Tensor:
        """Output at all tokens of x [B, N, D], or at `index` [B, M] alone; all tokens are attended to.

        With `parts`, from which x was assembled, the result is the same and takes fewer products.
        """
        qkv = self.project(x) if parts is None else parts.whole(self.project)
        mixed = self.attn(qkv, index)
        x = (x if index is None else gather(x, index)) + mixed
        return x + self.mlp(self.norm2(x))

    def project(self, x: Tensor) -> Tensor:
        """Queries, keys and values [B, N, 3 D] of x [B, N, D]: a token-wise function."""
        return self.attn.qkv(self.norm1(x))


class SelfDecoder(Decoder):
    """MAE's decoder (section 3, official `forward_decoder`): mask tokens fill the gaps, blocks see everything."""

    def __init__(self, encoder: Encoder, out: int, config: Config) -> None:
        super().__init__()
        width, self.grid, self.num_prefix = config.width, encoder.native_grid, encoder.num_prefix
        self.embed = nn.Linear(encoder.width, width)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, width))
        self.positions = nn.Parameter(with_prefix(sincos_2d(width, self.grid), self.num_prefix), requires_grad=False)
        shape = config.heads, config.mlp_ratio, config.norm_eps
        self.blocks = nn.ModuleList(SelfBlock(width, *shape) for _ in range(config.depth))
        self.norm = nn.LayerNorm(width, config.norm_eps)
        self.head = nn.Linear(width, out)
        xavier_(self)
        nn.init.normal_(self.mask_token, std=0.02)

    def forward(self, tokens: Tokens, mask: PatchMask, index: Tensor | None = None) -> Tensor:
        index = self.predicts(mask) if index is None else index

        # positions go to all tokens, prefix included
        table = resample(self.positions[:, self.num_prefix :], self.grid, tokens.grid)
        table = torch.cat([self.positions[:, : self.num_prefix], table], dim=1)
        keep, _ = mask.indices()
        prefix = torch.arange(self.num_prefix, device=keep.device).expand(len(keep), -1)
        places = torch.cat([prefix, keep + self.num_prefix], dim=1)
        seen = self.embed(torch.cat([tokens.prefix, tokens.patches], dim=1))
        seen = seen + gather(table.expand(len(seen), -1, -1), places)

        # un-shuffle the visible tokens among mask tokens, the same in all images
        parts = Parts(self.mask_token + table, seen, places)
        x = parts.whole()

        # the loss does not read visible patches, so the last block leaves them out
        *blocks, last = self.blocks
        for block in blocks:
            x = block(x, parts=parts if block is self.blocks[0] else None)
        x = last(x, index + self.num_prefix, parts if last is self.blocks[0] else None)
        return self.head(self.norm(x))
