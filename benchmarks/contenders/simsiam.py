"""SimSiam: ours against lightly's loss and heads on the same ViT (frozen patch projection).

Counted per view: patch embedding (never trained), encoder over 197 tokens, projector, predictor.
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
    lightly_vit,
    linear,
    patch_embedding,
)
from unlabeled.backbone.config import EncoderConfig
from unlabeled.data.batch.batch import Batch, ViewBatch
from unlabeled.pretrain.method import Method
from unlabeled.pretrain.methods.simsiam import Config

DIM, NARROW = 2048, 512


def ours(depth: int) -> Method:
    """Our SimSiam."""
    return Config(encoder=EncoderConfig(model=MODEL, depth=depth)).build()


def make_batch(pictures: int, seed: int) -> Batch:
    """Two views of noise."""
    return as_batch(pictures, ViewBatch(crops(torch.Generator().manual_seed(seed), 2, pictures), None))


class LightlySimSiam(Peer):
    """lightly's heads and loss; its projector has no bias in the last layer, which never learns officially."""

    renames: ClassVar = {
        "encoder.vit.": "backbone.vit.",
        "projector.": "projector.layers.",
        "predictor.": "predictor.layers.",
    }

    def __init__(self, depth: int) -> None:
        from lightly.loss import NegativeCosineSimilarity
        from lightly.models.modules.heads import SimSiamPredictionHead, SimSiamProjectionHead

        super().__init__()
        self.backbone = lightly_vit(depth)
        self.projector = SimSiamProjectionHead(WIDTH, WIDTH, DIM)
        self.predictor = SimSiamPredictionHead(DIM, NARROW, DIM)
        self.criterion = NegativeCosineSimilarity()

    def forward(self, batch: Batch) -> Tensor:
        images, _ = batch.views[0].flat()
        projected = [self.projector(x) for x in self.backbone(images).chunk(2)]
        predicted = [self.predictor(x) for x in projected]
        terms = [self.criterion(p, z.detach()) for p, z in zip(predicted, projected[::-1], strict=True)]
        return (terms[0] + terms[1]) / 2


def gflop() -> float:
    """Of a step, per picture."""
    heads = linear(1, WIDTH, WIDTH, WIDTH, DIM) + linear(1, DIM, NARROW, DIM)
    return 2 * (patch_embedding(PATCHES) + 3 * (encoder(PATCHES) + heads))


COMPARISON = Comparison(
    make_batch=make_batch,
    ours=Ours(ours, gflop()),
    lightly=LightlySimSiam,
    batch=16,  # the heads have more weights than the encoder: updating them weighs more the fewer the pictures
)
