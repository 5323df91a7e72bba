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
    LOCAL_SIDE,
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
from unlabeled.pretrain.methods.swav import Config

LOCALS, HIDDEN, DIM, PROTOTYPES = 6, 2048, 128, 3000


def make_batch(pictures: int, seed: int) -> Batch:
    """Two large crops and six small ones of noise."""
    generator = torch.Generator().manual_seed(seed)
    large = ViewBatch(crops(generator, 2, pictures), None)
    return as_batch(pictures, large, ViewBatch(crops(generator, LOCALS, pictures, LOCAL_SIDE), None))


def ours(depth: int) -> Method:
    """Our SwAV."""
    return Config(encoder=EncoderConfig(model=MODEL, positions="learned", depth=depth)).build()


class LightlySwAV(Peer):
    """lightly's loss; its projector lacks a bias and its prototypes have one, so that both are put together here."""

    renames: ClassVar = {"encoder.vit.": "backbone.vit.", "projector.": "projector.layers."}

    def __init__(self, depth: int) -> None:
        from lightly.loss import SwaVLoss
        from lightly.models.modules import MaskedVisionTransformerTIMM
        from lightly.models.modules.heads import ProjectionHead

        super().__init__()
        vit = timm_vit(depth, dynamic_img_size=True)
        self.backbone = MaskedVisionTransformerTIMM(vit=vit, antialias=False, pos_embed_initialization="learn")
        self.backbone.mask_token.requires_grad_(False)
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
    make_batch=make_batch,
    ours=Ours(ours, gflop()),
    lightly=LightlySwAV,
    note="lightly's projector has no hidden bias and its prototypes have one; here they are as official",
)
