"""MoCo v3: ours against lightly's heads on the same ViT (12 heads, frozen patch projection).

Counted per view: patch embedding (never trained) and encoder over 197 tokens, projector, all for student and teacher,
and the predictor.
"""

from __future__ import annotations

from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from contenders.parts import (
    MOMENTUM,
    PATCHES,
    WIDTH,
    Comparison,
    Ours,
    Peer,
    as_batch,
    crops,
    encoder,
    frozen_copy,
    linear,
    patch_embedding,
    timm_vit,
)
from unlabeled.data.batch.batch import Batch, ViewBatch
from unlabeled.pretrain.method import Method
from unlabeled.pretrain.methods.mocov3 import SMALL, Config

HEADS, HIDDEN, DIM, TEMPERATURE = 12, 4096, 256, 0.2


def make_batch(pictures: int, seed: int) -> Batch:
    """Two views of noise."""
    generator = torch.Generator().manual_seed(seed)
    return as_batch(pictures, *(ViewBatch(crops(generator, 1, pictures), None) for _ in range(2)))


def ours(depth: int) -> Method:
    """Our MoCo v3."""
    return Config(encoder=SMALL.model_copy(update={"depth": depth})).build()


class LightlyMoCoV3(Peer):
    """lightly's heads; its losses have no InfoNCE without a queue, so that one is written out."""

    renames: ClassVar = {
        "encoder.vit.": "backbone.vit.",
        "projector.": "projector.layers.",
        "predictor.": "predictor.layers.",
        "teacher.encoder.vit.": "teacher_backbone.vit.",
        "teacher.projector.": "teacher_projector.layers.",
    }
    more: ClassVar = tuple(
        f"{head}.{kind}" for head in ("projector.layers.7", "predictor.layers.4") for kind in ("weight", "bias")
    )

    def __init__(self, depth: int) -> None:
        from lightly.models.modules.heads import MoCoProjectionHead

        super().__init__()
        self.backbone, self.teacher_backbone = _backbone(depth), _backbone(depth)
        self.projector, self.teacher_projector = (
            MoCoProjectionHead(WIDTH, HIDDEN, DIM, num_layers=3, batch_norm=True) for _ in range(2)
        )
        self.predictor = MoCoProjectionHead(DIM, HIDDEN, DIM, num_layers=2, batch_norm=True)
        frozen_copy(self.teacher_backbone, self.backbone)
        frozen_copy(self.teacher_projector, self.projector)

    def forward(self, batch: Batch) -> Tensor:
        images = torch.cat([view.flat()[0] for view in batch.views])
        queries = [self.predictor(self.projector(x)) for x in self.backbone(images).chunk(2)]
        with torch.no_grad():
            keys = [self.teacher_projector(x) for x in self.teacher_backbone(images).chunk(2)]
        return _info_nce(queries[0], keys[1]) + _info_nce(queries[1], keys[0])

    def after_step(self) -> None:
        from lightly.models.utils import update_momentum

        update_momentum(self.backbone, self.teacher_backbone, MOMENTUM)
        update_momentum(self.projector, self.teacher_projector, MOMENTUM)


def _backbone(depth: int) -> nn.Module:
    from lightly.models.modules import MaskedVisionTransformerTIMM

    backbone = MaskedVisionTransformerTIMM(vit=timm_vit(depth, num_heads=HEADS))
    backbone.mask_token.requires_grad_(False)
    backbone.vit.patch_embed.requires_grad_(False)
    return backbone


def _info_nce(queries: Tensor, keys: Tensor) -> Tensor:
    logits = F.normalize(queries, dim=1) @ F.normalize(keys, dim=1).T / TEMPERATURE
    return 2 * TEMPERATURE * F.cross_entropy(logits, torch.arange(len(logits)))


def gflop() -> float:
    """Of a step, per picture."""
    trained = encoder(PATCHES) + linear(1, WIDTH, HIDDEN, HIDDEN, DIM)
    return 2 * ((3 + 1) * trained + 2 * patch_embedding(PATCHES) + 3 * linear(1, DIM, HIDDEN, DIM))


COMPARISON = Comparison(
    make_batch=make_batch,
    ours=Ours(ours, gflop()),
    lightly=LightlyMoCoV3,
    batch=16,  # the heads have as many weights as the encoder: updating them weighs more the fewer the pictures
    note="lightly's heads end in norms that learn a weight and a bias; its InfoNCE is written out here",
)
