"""SwAV, 2 x 224 and 6 x 96 pixels, 3000 prototypes, no queue: ours against lightly's loss on the same ViT.

Counted per crop: patch embedding, encoder, projector and prototypes.
"""

from __future__ import annotations

from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from contenders.parts import (
    LOCAL_PATCHES,
    LOCALS,
    MODEL,
    PATCHES,
    WIDTH,
    Comparison,
    Ours,
    Peer,
    encoder,
    lightly_vit_of_any_size,
    linear,
    multi_crop,
    patch_embedding,
)
from unlabeled.backbone.config import EncoderConfig
from unlabeled.data.batch.batch import Batch
from unlabeled.pretrain.method import Method
from unlabeled.pretrain.methods.swav import Config

HIDDEN, DIM, PROTOTYPES = 2048, 128, 3000


def ours(depth: int) -> Method:
    """Our SwAV."""
    return Config(encoder=EncoderConfig(model=MODEL, positions="learned", depth=depth)).build()


class LightlySwAV(Peer):
    """lightly's loss; its projector lacks a bias and its prototypes have one, so that both are put together here."""

    renames: ClassVar = {"encoder.vit.": "backbone.vit.", "projector.": "projector.layers."}

    def __init__(self, depth: int) -> None:
        from lightly.loss import SwaVLoss
        from lightly.models.modules.heads import ProjectionHead

        super().__init__()
        self.backbone = lightly_vit_of_any_size(depth)
        hidden = (WIDTH, HIDDEN, nn.BatchNorm1d(HIDDEN), nn.ReLU(), True)
        self.projector = ProjectionHead([hidden, (HIDDEN, DIM, None, None)])
        self.prototypes = nn.Linear(DIM, PROTOTYPES, bias=False)
        self.criterion = SwaVLoss()

    def forward(self, batch: Batch) -> Tensor:
        features = torch.cat([self.backbone(view.flat()[0]) for view in batch.views])
        scores = self.prototypes(F.normalize(self.projector(features), dim=1)).chunk(2 + LOCALS)
        return self.criterion(list(scores[:2]), list(scores[2:])).squeeze()

    def after_step(self) -> None:
        from lightly.models.utils import normalize_weight

        normalize_weight(self.prototypes.weight)


def gflop() -> float:
    """Of a step, per picture."""
    large, small = (patch_embedding(patches) + encoder(patches) for patches in (PATCHES, LOCAL_PATCHES))
    return 3 * (2 * large + LOCALS * small + linear(2 + LOCALS, WIDTH, HIDDEN, DIM, PROTOTYPES))


COMPARISON = Comparison(
    make_batch=multi_crop,
    ours=Ours(ours, gflop()),
    lightly=LightlySwAV,
    note="lightly's projector has no hidden bias and its prototypes have one; here they are as official",
)
