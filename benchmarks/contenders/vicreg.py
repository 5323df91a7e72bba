"""VICReg: ours against lightly's loss and heads on the same ViT (frozen patch projection).

Counted per view: patch embedding (never trained), encoder over 197 tokens, expander, and the covariances of D^2.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn

from contenders.parts import (
    MODEL,
    PATCHES,
    WIDTH,
    Comparison,
    Ours,
    Peer,
    encoder,
    lightly_vit,
    linear,
    pair,
    patch_embedding,
)
from unlabeled.backbone.config import EncoderConfig
from unlabeled.data.batch.batch import Batch
from unlabeled.pretrain.method import Method
from unlabeled.pretrain.methods.vicreg import Config

WIDE = 2048  # of the expander: at 8192 updating its weights would be the most of a step of few pictures


def ours(depth: int) -> Method:
    """Our VICReg."""
    return Config(encoder=EncoderConfig(model=MODEL, depth=depth), hidden=WIDE, dim=WIDE).build()


class LightlyVICReg(Peer):
    """lightly's loss; its expander has biases where the official one has none, so that this is put together here."""

    renames: ClassVar = {"encoder.vit.": "backbone.vit.", "projector.": "projector.layers."}

    def __init__(self, depth: int) -> None:
        from lightly.loss import VICRegLoss
        from lightly.models.modules.heads import ProjectionHead

        super().__init__()
        self.backbone = lightly_vit(depth)
        hidden = [(source, WIDE, nn.BatchNorm1d(WIDE), nn.ReLU(), True) for source in (WIDTH, WIDE)]
        self.projector = ProjectionHead([*hidden, (WIDE, WIDE, None, None, False)])
        self.criterion = VICRegLoss()

    def forward(self, batch: Batch) -> Tensor:
        images = torch.cat([view.flat()[0] for view in batch.views])
        first, second = (self.projector(x) for x in self.backbone(images).chunk(2))
        return self.criterion(first, second)


def gflop() -> float:
    """Of a step, per picture."""
    view = encoder(PATCHES) + linear(1, WIDTH, WIDE, WIDE, WIDE) + linear(1, WIDE, WIDE)
    return 2 * (patch_embedding(PATCHES) + 3 * view)


COMPARISON = Comparison(
    make_batch=pair,
    ours=Ours(ours, gflop()),
    lightly=LightlyVICReg,
    batch=16,  # the heads have more weights than the encoder: updating them weighs more the fewer the pictures
    note="lightly's expander has no hidden biases and one in its last layer; here they are as official",
)
