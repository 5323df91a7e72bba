"""The contract of decoders, from visible tokens to predictions at patches: `decoder(tokens, mask) -> [B, M, out]`.

M counts the patches of `decoder.predicts(mask)`; `index=` asks for any others. Kinds are the files of `decoders/`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Annotated

import torch.nn.functional as F
from pydantic import BaseModel, Field
from torch import Tensor, nn

from unlabeled.backbone.encoder import Encoder, Tokens
from unlabeled.nn.patches import PatchMask
from unlabeled.registry import ByFile


class DecoderConfig(BaseModel, ABC, frozen=True, extra="forbid"):
    """The settings of a decoder. `name` is the name of its file."""

    name: str
    norm_eps: float = Field(1e-6, gt=0, le=0.1, description="added to the variance in layer norms")

    @abstractmethod
    def build(self, encoder: Encoder, out: int) -> Decoder:
        """A decoder for `encoder` that predicts `out` values per patch."""


DECODERS = ByFile("unlabeled.pretrain.decoders", DecoderConfig)
AnyDecoder = Annotated[DecoderConfig, DECODERS]


class Decoder(nn.Module, ABC):
    """A network from tokens to patches."""

    def predicts(self, mask: PatchMask) -> Tensor:
        """The patches that it predicts in training [B, M] int64: by default all that are hidden."""
        return mask.indices()[1]

    @abstractmethod
    def forward(self, tokens: Tokens, mask: PatchMask, index: Tensor | None = None) -> Tensor:
        """Predictions [B, M, out] at `index` [B, M], by default at `predicts(mask)`."""


def attention(query: Tensor, key: Tensor, value: Tensor, heads: int) -> Tensor:
    """Multi-head attention of query [B, M, D] over key and value [B, N, D]: [B, M, D]."""
    query, key, value = (t.unflatten(-1, (heads, -1)).transpose(1, 2) for t in (query, key, value))
    return F.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2)
