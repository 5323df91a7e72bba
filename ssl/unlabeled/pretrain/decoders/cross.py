"""CrossMAE's decoder (Fu et al. 2024; official code TonyLianLong/CrossMAE at ed0677a).

Mask tokens at a share of the patches read the visible tokens by cross-attention, each block another weighted sum of
the encoder's blocks. Where paper and code differ this follows the code: the share counts all patches, so that 0.25 of
a mask of 0.75 is a third of the hidden ones; they are the last that were drawn. The code without weighted maps refers
to a norm that it never builds: there is none here.
"""

from __future__ import annotations

import math
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from unlabeled.backbone.config import EncoderConfig
from unlabeled.backbone.encoder import Encoder, Tokens
from unlabeled.data.mask import Mask
from unlabeled.nn.init import xavier_
from unlabeled.nn.patches import PatchMask, gather
from unlabeled.nn.positions import resample, sincos_2d, with_prefix
from unlabeled.pretrain.decoder import CrossBlock, Decoder, DecoderConfig


class Config(DecoderConfig, frozen=True):
    """Queries at a share of the patches attend to weighted sums of the encoder's blocks (CrossMAE)."""

    name: Literal["cross"] = "cross"
    depth: int = Field(12, ge=1, description="number of blocks")
    predicted: float = Field(0.25, gt=0, le=1, description="share of all patches to predict, hidden ones")
    maps: tuple[Annotated[int, Field(ge=0)], ...] | None = Field(
        None, min_length=1, description="encoder blocks whose outputs are weighted, from 0; null = all"
    )
    use_input: bool = Field(True, description="weight the tokens before the first block, too")

    def check(self, encoder: EncoderConfig, mask: Mask) -> None:
        if not encoder.family.layered:
            raise ValueError(
                f"cross weights the encoder's blocks, which {encoder.in_words} does not give. Use decoder cross_light, "
                "or a vit_* model"
            )
        if (hidden := mask.hidden_share) is not None and self.predicted > hidden:
            raise ValueError(
                f"predicted: found {self.predicted:g} of all patches, but the mask hides {hidden:g}. Set it to at most "
                "that"
            )

    def build(self, encoder: Encoder, out: int, hidden: float | None = None) -> CrossDecoder:
        if self.maps is not None and max(self.maps) >= encoder.depth:
            raise ValueError(
                f"decoder.maps: found block {max(self.maps)}, but the encoder has blocks 0 to {encoder.depth - 1}"
            )
        return CrossDecoder(encoder, out, self, hidden)


class CrossDecoder(Decoder):
    """Mask tokens that read weighted sums of the encoder's blocks, and not each other (section 3)."""

    def __init__(self, encoder: Encoder, out: int, config: Config, hidden: float | None) -> None:
        super().__init__()
        width, self.grid, self.predicted, self.hidden = config.width, encoder.native_grid, config.predicted, hidden
        blocks = range(encoder.depth) if config.maps is None else sorted(set(config.maps))
        self.read = [*([0] if config.use_input else []), *(block + 1 for block in blocks)]  # places in `Tokens.layers`
        self.maps = nn.Linear(len(self.read), config.depth, bias=False)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, width))
        self.positions = nn.Parameter(with_prefix(sincos_2d(width, self.grid), 0), requires_grad=False)
        shape = width, config.heads, config.mlp_ratio, config.norm_eps, encoder.width
        self.blocks = nn.ModuleList(CrossBlock(*shape) for _ in range(config.depth))
        self.norm = nn.LayerNorm(width, config.norm_eps)
        self.head = nn.Linear(width, out)
        xavier_(self)
        nn.init.normal_(self.mask_token, std=0.02)
        nn.init.normal_(self.maps.weight, std=1 / math.sqrt(len(self.read)))
        encoder.vit.norm.requires_grad_(False)  # nothing reads the tokens through it

    def encode(self, encoder: Encoder, images: Tensor, mask: PatchMask) -> Tokens:
        return encoder.layers(images, mask)

    def predicts(self, mask: PatchMask) -> Tensor:
        (_, drop), patches = mask.indices(), mask.hidden.shape[-1]
        hidden = drop.shape[1] / patches if self.hidden is None else self.hidden
        return drop[:, max(0, int(patches * (hidden - self.predicted))) :].sort(dim=1).values

    def forward(self, tokens: Tokens, mask: PatchMask, index: Tensor | None = None) -> Tensor:
        index = self.predicts(mask) if index is None else index
        layers = torch.stack([tokens.layers[place] for place in self.read], dim=-1)
        memories = self.maps(layers).unbind(-1)
        table = resample(self.positions, self.grid, tokens.grid).expand(len(index), -1, -1)
        x = self.mask_token + gather(table, index)
        for block, memory in zip(self.blocks, memories, strict=True):
            x = block(x, memory)
        return self.head(self.norm(x))
