"""DINO, 2 x 224 and 8 x 96 pixels, 65536 prototypes: ours against lightly's backbone, head and loss.

Counted: patch embedding, encoder and head on the class token, of 10 crops for the student and of 2 for the teacher.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor

from contenders.parts import (
    LOCAL_PATCHES,
    LOCAL_SIDE,
    MODEL,
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
from unlabeled.backbone.config import EncoderConfig
from unlabeled.data.batch.batch import Batch, ViewBatch
from unlabeled.pretrain.method import Method
from unlabeled.pretrain.methods.dino import LOCAL, Config

LOCALS, HIDDEN, BOTTLENECK, PROTOTYPES, DROP_PATH, TEACHER_TEMPERATURE = 8, 2048, 256, 65536, 0.1, 0.07


def make_batch(pictures: int, seed: int) -> Batch:
    """Two large crops and eight small ones of noise."""
    generator = torch.Generator().manual_seed(seed)
    large = (ViewBatch(crops(generator, 1, pictures), None) for _ in range(2))
    return as_batch(pictures, *large, ViewBatch(crops(generator, LOCALS, pictures, LOCAL_SIDE), None))


def student(depth: int) -> EncoderConfig:
    """Positions interpolated by size, as lightly does; DINO's scale factor costs the same."""
    return EncoderConfig(model=MODEL, positions="learned", interpolation="size", drop_path=DROP_PATH, depth=depth)


def ours(depth: int) -> Method:
    """Our DINO."""
    return Config(local=LOCAL.model_copy(update={"count": LOCALS}), encoder=student(depth)).build()


class LightlyDINO(Peer):
    """As in lightly's benchmarks: the crops of one size go through together."""

    renames: ClassVar = {
        "encoder.vit.": "backbone.vit.",
        "head.mlp.": "head.layers.",
        "teacher.vit.": "teacher_backbone.vit.",
        "teacher_head.mlp.": "teacher_head.layers.",
    }

    def __init__(self, depth: int) -> None:
        from lightly.loss import DINOLoss

        super().__init__()
        self.backbone, self.head = backbone_and_head(depth, PROTOTYPES, DROP_PATH)
        self.backbone.mask_token.requires_grad_(False)
        self.teacher_backbone, self.teacher_head = backbone_and_head(depth, PROTOTYPES, 0.0)
        frozen_copy(self.teacher_backbone, self.backbone)
        frozen_copy(self.teacher_head, self.head)
        self.criterion = DINOLoss(output_dim=PROTOTYPES, teacher_temp=TEACHER_TEMPERATURE)

    def forward(self, batch: Batch) -> Tensor:
        large = torch.cat([view.flat()[0] for view in batch.views[:2]])
        small = batch.views[2].flat()[0]
        with torch.no_grad():
            taught = self.teacher_head(self.teacher_backbone(large))
        learnt = torch.cat([self.head(self.backbone(images)) for images in (large, small)])
        return self.criterion(taught.chunk(2), learnt.chunk(2 + LOCALS))

    def after_step(self) -> None:
        follow(self)


def backbone_and_head(depth: int, prototypes: int, drop_path: float) -> tuple[Any, Any]:
    """lightly's, for any crop size."""
    from lightly.models.modules import DINOProjectionHead, MaskedVisionTransformerTIMM

    vit = timm_vit(depth, drop_path_rate=drop_path, dynamic_img_size=True)
    backbone = MaskedVisionTransformerTIMM(vit=vit, antialias=False, pos_embed_initialization="learn")
    return backbone, DINOProjectionHead(WIDTH, HIDDEN, BOTTLENECK, prototypes, norm_last_layer=False)


def follow(model: Any) -> None:
    """Move lightly's teacher."""
    from lightly.models.utils import update_momentum

    update_momentum(model.backbone, model.teacher_backbone, MOMENTUM)
    update_momentum(model.head, model.teacher_head, MOMENTUM)


def backbones() -> float:
    """GFLOP of student and teacher in a step, per picture."""
    large, small = (patch_embedding(patches) + encoder(patches) for patches in (PATCHES, LOCAL_PATCHES))
    return 3 * (2 * large + LOCALS * small) + 2 * large


def gflop() -> float:
    """Of a step, per picture."""
    tokens = 3 * (2 + LOCALS) + 2
    return backbones() + linear(tokens, WIDTH, HIDDEN, HIDDEN, BOTTLENECK, PROTOTYPES)


COMPARISON = Comparison(
    make_batch=make_batch,
    ours=Ours(ours, gflop()),
    lightly=LightlyDINO,
    note="both interpolate positions by size, as lightly does; DINO scales them by a factor",
)
