"""Barlow Twins: ours against lightly's loss and heads on the same ViT (frozen patch projection).

Counted per view: patch embedding (never trained), encoder over 197 tokens, projector; the correlation of D^2 for both.
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
from unlabeled.pretrain.methods.barlowtwins import Config

WIDE = 2048  # of the projector: at 8192 updating its weights would be the most of a step of few pictures


def ours(depth: int) -> Method:
    """Our Barlow Twins."""
    return Config(encoder=EncoderConfig(model=MODEL, depth=depth), hidden=WIDE, dim=WIDE).build()


class LightlyBarlowTwins(Peer):
    """lightly's projector without its last bias, which nothing learns from."""

    renames: ClassVar = {"encoder.vit.": "backbone.vit.", "projector.": "projector.layers."}

    def __init__(self, depth: int) -> None:
        from lightly.loss import BarlowTwinsLoss
        from lightly.models.modules.heads import BarlowTwinsProjectionHead

        super().__init__()
        self.backbone = lightly_vit(depth)
        self.projector = BarlowTwinsProjectionHead(WIDTH, WIDE, WIDE)
        last = self.projector.layers[-1]
        assert isinstance(last, nn.Linear)
        last.bias = None  # type: ignore[assignment]
        self.criterion = BarlowTwinsLoss(lambda_param=0.0051)

    def forward(self, batch: Batch) -> Tensor:
        images = torch.cat([view.flat()[0] for view in batch.views])
        first, second = (self.projector(x) for x in self.backbone(images).chunk(2))
        return self.criterion(first, second)


def gflop() -> float:
    """Of a step, per picture."""
    view = encoder(PATCHES) + linear(1, WIDTH, WIDE, WIDE, WIDE)
    return 2 * (patch_embedding(PATCHES) + 3 * view) + 3 * linear(1, WIDE, WIDE)


COMPARISON = Comparison(
    make_batch=pair,
    ours=Ours(ours, gflop()),
    lightly=LightlyBarlowTwins,
    batch=16,  # the heads have more weights than the encoder: updating them weighs more the fewer the pictures
)
