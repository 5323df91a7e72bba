"""SimCLR: ours against lightly's head and loss on the same ViT (frozen patch projection).

Counted per view: patch embedding (never trained), encoder over 197 tokens, projector.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from contenders.parts import (
    MODEL,
    PATCHES,
    WIDTH,
    Comparison,
    Ours,
    Peer,
    as_batch,
    crops,
    encoder,
    linear,
    patch_embedding,
    timm_vit,
)
from unlabeled.backbone.config import EncoderConfig
from unlabeled.data.batch.batch import Batch, ViewBatch
from unlabeled.pretrain.method import Method
from unlabeled.pretrain.methods.simclr import Config

HIDDEN, DIM, TEMPERATURE = 2048, 128, 0.1


def make_batch(pictures: int, seed: int) -> Batch:
    """Two views of noise."""
    return as_batch(pictures, ViewBatch(crops(torch.Generator().manual_seed(seed), 2, pictures), None))


def ours(depth: int) -> Method:
    """Our SimCLR."""
    return Config(encoder=EncoderConfig(model=MODEL, depth=depth)).build()


class LightlySimCLR(Peer):
    """As in lightly's benchmarks: both views through the network together."""

    renames: ClassVar = {"encoder.vit.": "backbone.vit.", "projector.": "projector.layers."}
    more: ClassVar = ("projector.layers.4.weight", "projector.layers.4.bias")

    def __init__(self, depth: int) -> None:
        from lightly.loss import NTXentLoss
        from lightly.models.modules import MaskedVisionTransformerTIMM
        from lightly.models.modules.heads import SimCLRProjectionHead

        super().__init__()
        self.backbone = MaskedVisionTransformerTIMM(vit=timm_vit(depth))
        self.backbone.mask_token.requires_grad_(False)
        self.backbone.vit.patch_embed.requires_grad_(False)
        self.projector = SimCLRProjectionHead(WIDTH, HIDDEN, DIM)
        self.criterion = NTXentLoss(temperature=TEMPERATURE)

    def forward(self, batch: Batch) -> Tensor:
        images, _ = batch.views[0].flat()
        return self.criterion(*self.projector(self.backbone(images)).chunk(2))


def gflop() -> float:
    """Of a step, per picture."""
    return 2 * (patch_embedding(PATCHES) + 3 * (encoder(PATCHES) + linear(1, WIDTH, HIDDEN, DIM)))


COMPARISON = Comparison(
    make_batch=make_batch,
    ours=Ours(ours, gflop()),
    lightly=LightlySimCLR,
    note="lightly's head ends in a norm that learns a weight and a bias",
)
