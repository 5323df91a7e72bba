"""BYOL: ours against lightly's loss and heads on the same ViT (frozen patch projection).

Counted per view: patch embedding (never trained) and encoder over 197 tokens, projector, all for student and teacher,
and the predictor.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn

from contenders.parts import (
    MODEL,
    MOMENTUM,
    PATCHES,
    WIDTH,
    Comparison,
    Ours,
    Peer,
    encoder,
    frozen_copy,
    lightly_vit,
    linear,
    pair,
    patch_embedding,
)
from unlabeled.backbone.config import EncoderConfig
from unlabeled.data.batch.batch import Batch
from unlabeled.pretrain.method import Method
from unlabeled.pretrain.methods.byol import Config

HIDDEN, DIM = 4096, 256


def ours(depth: int) -> Method:
    """Our BYOL."""
    return Config(encoder=EncoderConfig(model=MODEL, depth=depth)).build()


class LightlyBYOL(Peer):
    """lightly's loss, halved there; its heads have biases where the official ones have none."""

    renames: ClassVar = {
        "encoder.vit.": "backbone.vit.",
        "projector.": "projector.layers.",
        "predictor.": "predictor.layers.",
        "teacher.encoder.vit.": "teacher_backbone.vit.",
        "teacher.projector.": "teacher_projector.layers.",
    }

    def __init__(self, depth: int) -> None:
        from lightly.loss import NegativeCosineSimilarity

        super().__init__()
        self.backbone, self.teacher_backbone = lightly_vit(depth), lightly_vit(depth)
        self.projector, self.teacher_projector, self.predictor = _head(WIDTH), _head(WIDTH), _head(DIM)
        frozen_copy(self.teacher_backbone, self.backbone)
        frozen_copy(self.teacher_projector, self.projector)
        self.criterion = NegativeCosineSimilarity()

    def forward(self, batch: Batch) -> Tensor:
        images = torch.cat([view.flat()[0] for view in batch.views])
        predicted = [self.predictor(self.projector(x)) for x in self.backbone(images).chunk(2)]
        with torch.no_grad():
            targets = [self.teacher_projector(x) for x in self.teacher_backbone(images).chunk(2)]
        return 4 + 2 * (self.criterion(predicted[0], targets[1]) + self.criterion(predicted[1], targets[0]))

    def after_step(self) -> None:
        from lightly.models.utils import update_momentum

        update_momentum(self.backbone, self.teacher_backbone, MOMENTUM)
        update_momentum(self.projector, self.teacher_projector, MOMENTUM)


def _head(width: int) -> nn.Module:
    from lightly.models.modules.heads import ProjectionHead

    hidden = (width, HIDDEN, nn.BatchNorm1d(HIDDEN), nn.ReLU(), True)
    return ProjectionHead([hidden, (HIDDEN, DIM, None, None, False)])


def gflop() -> float:
    """Of a step, per picture."""
    trained = encoder(PATCHES) + linear(1, WIDTH, HIDDEN, DIM)
    return 2 * ((3 + 1) * trained + 2 * patch_embedding(PATCHES) + 3 * linear(1, DIM, HIDDEN, DIM))


COMPARISON = Comparison(
    make_batch=pair,
    ours=Ours(ours, gflop()),
    lightly=LightlyBYOL,
    batch=16,  # the heads have more weights than the encoder: updating them weighs more the fewer the pictures
    note="lightly's heads have no hidden biases and one in their last layer; here they are as official",
)
