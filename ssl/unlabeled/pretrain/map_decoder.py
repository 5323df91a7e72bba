"""The contract of decoders from the feature maps of a masked CNN to images: `decoder(maps, visible) -> [B, C, H, W]`.

Kinds are the files of `map_decoders/`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Annotated

from pydantic import BaseModel
from torch import Tensor, nn

from unlabeled.backbone.masked import Level, Visible
from unlabeled.registry import ByFile


class MapDecoderConfig(BaseModel, ABC, frozen=True, extra="forbid"):
    """The settings of a decoder of feature maps. `name` is the name of its file."""

    name: str

    @abstractmethod
    def build(self, levels: list[Level], channels: int, batch_norm: bool) -> MapDecoder:
        """A decoder of maps, the deepest first, to images of `channels`; `batch_norm` tells whether their encoder
        normalises by batch. Raises UserError when it cannot read such maps."""


AnyMapDecoder = Annotated[MapDecoderConfig, ByFile("unlabeled.pretrain.map_decoders", MapDecoderConfig)]


class MapDecoder(nn.Module, ABC):
    """A network from feature maps, of which only visible cells count, to images."""

    @abstractmethod
    def forward(self, maps: list[Tensor], visible: Visible) -> Tensor:
        """Images [B, C, H, W] from maps [B, D, rows, columns], the deepest first."""
