"""Decoders from visible tokens to predictions at patches: `decoder(tokens, mask) -> [B, M, out]`.

M counts the patches that `decoder.predicts(mask)` names; `index=` asks for any others.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from functools import partial
from typing import Annotated, Literal, NamedTuple

import torch
import torch.nn.functional as F
from pydantic import BaseModel, Field
from torch import Tensor, nn

from unlabeled.backbone.encoder import Encoder, Tokens
from unlabeled.nn.init import xavier_
from unlabeled.nn.patches import PatchMask, gather
from unlabeled.nn.positions import resample, sincos_2d, with_prefix

layer_norm = partial(nn.LayerNorm, eps=1e-6)


class SelfDecoderConfig(BaseModel, frozen=True, extra="forbid"):
    """MAE's decoder: self-attention over visible and mask tokens."""

    name: Literal["self"] = "self"
    width: int = Field(512, ge=4, multiple_of=4, description="token width")
    depth: int = Field(8, ge=1, description="number of blocks")
    heads: int = Field(16, ge=1, description="attention heads")
    mlp_ratio: float = Field(4.0, ge=0.25, le=64, description="width of a block's MLP over the token width")

    def build(self, encoder: Encoder, out: int) -> SelfDecoder:
        """A decoder for `encoder` that predicts `out` values per patch."""
        return SelfDecoder(encoder, out, self.width, self.depth, self.heads, self.mlp_ratio)


class CrossDecoderConfig(BaseModel, frozen=True, extra="forbid"):
    """Queries at a share of the hidden patches attend to the visible tokens only (CrossMAE): cheaper."""

    name: Literal["cross"] = "cross"
    width: int = Field(512, ge=4, multiple_of=4, description="token width")
    depth: int = Field(8, ge=1, description="number of blocks")
    heads: int = Field(16, ge=1, description="attention heads")
    mlp_ratio: float = Field(4.0, ge=0.25, le=64, description="width of a block's MLP over the token width")
    share: float = Field(0.25, gt=0, le=1, description="share of the hidden patches to predict")

    def build(self, encoder: Encoder, out: int) -> CrossDecoder:
        """A decoder for `encoder` that predicts `out` values per patch."""
        return CrossDecoder(encoder, out, self.width, self.depth, self.heads, self.share, self.mlp_ratio)


DecoderConfig = Annotated[SelfDecoderConfig | CrossDecoderConfig, Field(discriminator="name")]


class Decoder(nn.Module, ABC):
    """What every decoder answers."""

    def predicts(self, mask: PatchMask) -> Tensor:
        """The patches it predicts in training: [B, M] int64."""
        return mask.indices()[1]

    @abstractmethod
    def forward(self, tokens: Tokens, mask: PatchMask, index: Tensor | None = None) -> Tensor:
        """Predictions [B, M, out] at `index` [B, M], by default at `predicts(mask)`."""


class LinearDecoder(Decoder):
    """One linear layer on a full-length sequence (SimMIM section 3.3), for encoders run with `replace=`.

    Args:
        encoder: whose tokens it reads.
        out: values per patch.
    """

    def __init__(self, encoder: Encoder, out: int) -> None:
        super().__init__()
        self.head = nn.Linear(encoder.width, out)

    def forward(self, tokens: Tokens, mask: PatchMask, index: Tensor | None = None) -> Tensor:
        index = self.predicts(mask) if index is None else index
        return self.head(gather(tokens.patches, index))


def attention(query: Tensor, key: Tensor, value: Tensor, heads: int) -> Tensor:
    """Multi-head attention of query [B, M, D] over key and value [B, N, D]: [B, M, D]."""
    query, key, value = (t.unflatten(-1, (heads, -1)).transpose(1, 2) for t in (query, key, value))
    return F.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2)


class Parts(NamedTuple):
    """Full sequences before they are put together.

    Attributes:
        gaps: one for all pictures [1, N, D].
        seen: what replaces some of it in each picture [B, K, D].
        places: where, [B, K].
    """

    gaps: Tensor
    seen: Tensor
    places: Tensor

    def whole(self, each: Callable[[Tensor], Tensor] = lambda part: part) -> Tensor:
        """`each` of all tokens [B, N, ...], which must treat a token for itself: gaps are asked once for the batch."""
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
        """From queries, keys and values [B, N, 3 D], at all tokens or at `index` [B, M] alone."""
        query, key, value = qkv.chunk(3, dim=-1)
        query = query if index is None else gather(query, index)
        return self.proj(attention(query, key, value, self.heads))


class SelfBlock(nn.Module):
    """Pre-norm transformer block, timm's `Block` but for one thing: it can answer for some tokens only."""

    def __init__(self, width: int, heads: int, mlp_ratio: float = 4.0) -> None:
        from timm.layers import Mlp

        super().__init__()
        self.norm1 = layer_norm(width)
        self.attn = SelfAttention(width, heads)
        self.norm2 = layer_norm(width)
        self.mlp = Mlp(width, int(width * mlp_ratio))

    def forward(self, x: Tensor, index: Tensor | None = None, parts: Parts | None = None) -> Tensor:
        """Of x [B, N, D], at all tokens or at `index` [B, M] alone; all are attended to in either case.

        `parts` are what x was put together from, if it was: the same result for fewer products.
        """
        qkv = self.project(x) if parts is None else parts.whole(self.project)
        mixed = self.attn(qkv, index)
        x = (x if index is None else gather(x, index)) + mixed
        return x + self.mlp(self.norm2(x))

    def project(self, x: Tensor) -> Tensor:
        """Queries, keys and values [B, N, 3 D] of x [B, N, D], each token for itself."""
        return self.attn.qkv(self.norm1(x))


class SelfDecoder(Decoder):
    """MAE's decoder (section 3, official `forward_decoder`): mask tokens fill the gaps, blocks see everything.

    Args:
        encoder: whose tokens it reads.
        out: values per patch.
        width, depth, heads, mlp_ratio: of its blocks.
    """

    def __init__(self, encoder: Encoder, out: int, width: int, depth: int, heads: int, mlp_ratio: float = 4.0) -> None:
        super().__init__()
        self.grid = encoder.native_grid
        self.num_prefix = encoder.num_prefix
        self.embed = nn.Linear(encoder.width, width)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, width))
        table = with_prefix(sincos_2d(width, self.grid), self.num_prefix)
        self.positions = nn.Parameter(table, requires_grad=False)
        self.blocks = nn.ModuleList(SelfBlock(width, heads, mlp_ratio) for _ in range(depth))
        self.norm = layer_norm(width)
        self.head = nn.Linear(width, out)
        xavier_(self)
        nn.init.normal_(self.mask_token, std=0.02)

    def forward(self, tokens: Tokens, mask: PatchMask, index: Tensor | None = None) -> Tensor:
        index = self.predicts(mask) if index is None else index

        # positions go to all tokens, prefix included
        table = resample(self.positions[:, self.num_prefix :], self.grid, tokens.grid)
        table = torch.cat([self.positions[:, : self.num_prefix], table], dim=1)
        places = self._places(mask)
        seen = self.embed(torch.cat([tokens.prefix, tokens.patches], dim=1))
        seen = seen + gather(table.expand(len(seen), -1, -1), places)

        # un-shuffle the visible tokens among mask tokens, which are alike in all pictures
        parts = Parts(self.mask_token + table, seen, places)
        x = parts.whole()

        # nobody reads the last block's output at visible patches, so it is not computed there
        *blocks, last = self.blocks
        for block in blocks:
            x = block(x, parts=parts if block is self.blocks[0] else None)
        x = last(x, index + self.num_prefix, parts if last is self.blocks[0] else None)
        return self.head(self.norm(x))

    def _places(self, mask: PatchMask) -> Tensor:
        """Where prefix and visible tokens [B, P + K] stand in the full sequence."""
        keep, _ = mask.indices()
        prefix = torch.arange(self.num_prefix, device=keep.device).expand(len(keep), -1)
        return torch.cat([prefix, keep + self.num_prefix], dim=1)


class CrossBlock(nn.Module):
    """Pre-norm block whose queries attend to a memory instead of to each other."""

    def __init__(self, width: int, heads: int, mlp_ratio: float = 4.0) -> None:
        from timm.layers import Mlp

        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = layer_norm(width), layer_norm(width)
        self.query = nn.Linear(width, width)
        self.key_value = nn.Linear(width, 2 * width)
        self.proj = nn.Linear(width, width)
        self.mlp = Mlp(width, int(width * mlp_ratio))

    def forward(self, x: Tensor, memory: Tensor) -> Tensor:
        """Queries x [B, M, D] over memory [B, K, D]: [B, M, D]."""
        x = x + self.attend(self.norm1(x), memory)
        return x + self.mlp(self.norm2(x))

    def attend(self, x: Tensor, memory: Tensor) -> Tensor:
        """Multi-head attention of x over memory."""
        key, value = self.key_value(memory).chunk(2, dim=-1)
        return self.proj(attention(self.query(x), key, value, self.heads))


class CrossDecoder(Decoder):
    """Mask tokens at a random share of the hidden patches read the visible tokens by cross-attention.

    Follows CrossMAE (Fu et al. 2024, section 3.2) without its weighting of encoder blocks: there is no attention
    among mask tokens, so predicting fewer of them changes no prediction and saves their whole cost.

    Args:
        encoder: whose tokens it reads.
        out: values per patch.
        width, depth, heads: of its blocks.
        share: of the hidden patches to predict in training, in (0, 1].
        mlp_ratio: of its blocks.
    """

    def __init__(
        self, encoder: Encoder, out: int, width: int, depth: int, heads: int, share: float, mlp_ratio: float = 4.0
    ) -> None:
        super().__init__()
        self.grid = encoder.native_grid
        self.share = share
        self.embed = nn.Linear(encoder.width, width)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, width))
        self.positions = nn.Parameter(with_prefix(sincos_2d(width, self.grid), 0), requires_grad=False)
        self.memory_norm = layer_norm(width)
        self.blocks = nn.ModuleList(CrossBlock(width, heads, mlp_ratio) for _ in range(depth))
        self.norm = layer_norm(width)
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
