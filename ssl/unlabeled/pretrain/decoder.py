"""The contract of decoders, from visible tokens to predictions at patches: `decoder(tokens, mask) -> [B, M, out]`.

M counts the patches of `decoder.predicts(mask)`; `index=` asks for any others. Kinds are the files of `decoders/`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Annotated

import torch.nn.functional as F
from pydantic import BaseModel, Field, field_validator
from pydantic import ValidationInfo as Info
from torch import Tensor, nn

from unlabeled.backbone.config import EncoderConfig
from unlabeled.backbone.encoder import Encoder, Tokens
from unlabeled.data.mask import Mask
from unlabeled.nn.patches import PatchMask
from unlabeled.registry import ByFile


class DecoderConfig(BaseModel, ABC, frozen=True, extra="forbid"):
    """The settings of a decoder. `name` is the name of its file."""

    name: str
    norm_eps: float = Field(1e-6, gt=0, le=0.1, description="added to the variance in layer norms")
    width: int = Field(512, ge=4, multiple_of=4, description="token width")
    depth: int = Field(8, ge=1, description="number of blocks")
    heads: int = Field(16, ge=1, description="attention heads")
    mlp_ratio: float = Field(4.0, ge=0.25, le=64, description="width of a block's MLP over the token width")

    @field_validator("heads")
    @classmethod
    def _divides(cls, heads: int, info: Info) -> int:
        if (width := info.data.get("width")) and width % heads:
            raise ValueError(f"{heads} heads do not divide a width of {width}: set one that does")
        return heads

    def check(self, encoder: EncoderConfig, mask: Mask) -> None:
        """Raise ValueError when it does not fit the encoder, or the mask of the crops."""

    @abstractmethod
    def build(self, encoder: Encoder, out: int, hidden: float | None = None) -> Decoder:
        """A decoder for `encoder` that predicts `out` values per patch, of crops with a share `hidden` of patches
        hidden, see `Mask.hidden_share`."""


DECODERS = ByFile("unlabeled.pretrain.decoders", DecoderConfig)
AnyDecoder = Annotated[DecoderConfig, DECODERS]


class Decoder(nn.Module, ABC):
    """A network from tokens to patches."""

    def encode(self, encoder: Encoder, images: Tensor, mask: PatchMask) -> Tokens:
        """The tokens that it reads, of the visible patches of images [B, C, H, W]."""
        return encoder(images, drop=mask)

    def predicts(self, mask: PatchMask) -> Tensor:
        """The patches that it predicts in training [B, M] int64: by default all that are hidden."""
        return mask.indices()[1]

    @abstractmethod
    def forward(self, tokens: Tokens, mask: PatchMask, index: Tensor | None = None) -> Tensor:
        """Predictions [B, M, out] at `index` [B, M], by default at `predicts(mask)`."""


class CrossBlock(nn.Module):
    """Pre-norm block whose queries attend to a memory instead of to each other.

    The memory is as wide as the queries, or of `memory_width` and goes through a norm of its own.
    """

    def __init__(
        self,
        width: int,
        heads: int,
        mlp_ratio: float = 4.0,
        norm_eps: float = 1e-6,
        memory_width: int | None = None,
    ) -> None:
        from timm.layers import Mlp

        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width, norm_eps), nn.LayerNorm(width, norm_eps)
        self.memory_norm = nn.LayerNorm(memory_width, norm_eps) if memory_width else nn.Identity()
        self.query = nn.Linear(width, width)
        self.key_value = nn.Linear(memory_width or width, 2 * width)
        self.proj = nn.Linear(width, width)
        self.mlp = Mlp(width, int(width * mlp_ratio))

    def forward(self, x: Tensor, memory: Tensor) -> Tensor:
        """Queries x [B, M, D] over memory [B, K, D']: [B, M, D]."""
        key, value = self.key_value(self.memory_norm(memory)).chunk(2, dim=-1)
        x = x + self.proj(attention(self.query(self.norm1(x)), key, value, self.heads))
        return x + self.mlp(self.norm2(x))


def attention(query: Tensor, key: Tensor, value: Tensor, heads: int) -> Tensor:
    """Multi-head attention of query [B, M, D] over key and value [B, N, D]: [B, M, D]."""
    query, key, value = (t.unflatten(-1, (heads, -1)).transpose(1, 2) for t in (query, key, value))
    return F.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2)
