"""I-JEPA, a context of 65 patches and four targets of 33: ours against lightly's backbone and predictor.

Counted: patch embedding, encoder over the context for the student and over all patches for the teacher; the predictor
over context and target, four times. Our predictor's last block computes no outputs for the context; they count.
"""

from __future__ import annotations

from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from contenders.parts import (
    DEPTH,
    MODEL,
    MOMENTUM,
    PATCHES,
    WIDTH,
    Comparison,
    Ours,
    Peer,
    as_batch,
    blocks,
    crops,
    encoder,
    frozen_copy,
    linear,
    patch_embedding,
    timm_vit,
    with_class_token,
)
from unlabeled.backbone.config import EncoderConfig
from unlabeled.data.batch.batch import Batch, ViewBatch
from unlabeled.nn.patches import PatchMask
from unlabeled.pretrain.method import Method
from unlabeled.pretrain.methods.ijepa import Config, PredictorConfig

CONTEXT, TARGETS, TARGET = 65, 4, 33
PREDICTOR_WIDTH, PREDICTOR_DEPTH, PREDICTOR_HEADS = 384, 6, 6


def make_batch(pictures: int, seed: int) -> Batch:
    """One crop of noise; the patches of context and targets at random places."""
    generator = torch.Generator().manual_seed(seed)
    order = torch.rand(pictures, PATCHES, generator=generator).argsort(dim=1)
    keep, drop = order[:, :CONTEXT], order[:, CONTEXT:]
    hidden = torch.ones(pictures, PATCHES, dtype=torch.bool).scatter(1, keep, False)
    places = torch.rand(pictures, TARGETS, drop.shape[1], generator=generator).argsort(dim=2)[..., :TARGET]
    targets = drop.unsqueeze(1).expand(-1, TARGETS, -1).gather(2, places)
    mask = PatchMask(hidden[None], keep[None], drop[None], targets[None])
    return as_batch(pictures, ViewBatch(crops(generator, 1, pictures), mask))


def ours(depth: int) -> Method:
    """Our I-JEPA."""
    predictor = PredictorConfig(width=PREDICTOR_WIDTH, depth=min(depth, PREDICTOR_DEPTH), heads=PREDICTOR_HEADS)
    return Config(encoder=EncoderConfig(model=MODEL, positions="sincos", depth=depth), predictor=predictor).build()


class LightlyIJEPA(Peer):
    """lightly's predictor and backbone; the loss is torch's."""

    renames: ClassVar = {
        "encoder.vit.": "backbone.vit.",
        "teacher.vit.": "teacher_backbone.vit.",
        "predictor.embed.": "predictor.predictor_embed.",
        "predictor.head.": "predictor.predictor_proj.",
        "predictor.positions": "predictor.decoder.pos_embed",
        "predictor.": "predictor.decoder.",
    }

    def __init__(self, depth: int) -> None:
        from lightly.models.modules import MaskedVisionTransformerTIMM
        from lightly.models.modules.ijepa_timm import IJEPAPredictorTIMM

        super().__init__()
        self.backbone, self.teacher_backbone = (MaskedVisionTransformerTIMM(vit=timm_vit(depth)) for _ in range(2))
        self.backbone.mask_token.requires_grad_(False)
        frozen_copy(self.teacher_backbone, self.backbone)
        self.predictor = IJEPAPredictorTIMM(
            num_patches=PATCHES,
            depth=min(depth, PREDICTOR_DEPTH),
            mlp_dim=WIDTH,
            predictor_embed_dim=PREDICTOR_WIDTH,
            num_heads=PREDICTOR_HEADS,
        )

    def forward(self, batch: Batch) -> Tensor:
        from lightly.models import utils

        images, mask = batch.views[0].flat()
        assert mask is not None
        keep, sets = mask.indices()[0], list(mask.sets().unbind(1))
        seen = torch.cat([torch.zeros_like(keep[:, :1]), with_class_token(keep)], dim=1)
        predictions = self.predictor(self.backbone.encode(images, idx_keep=seen)[:, 1:], [keep], sets)
        with torch.no_grad():
            whole = self.teacher_backbone.encode(images)[:, 1:]
            targets = F.layer_norm(utils.apply_masks(whole, sets), (WIDTH,))
        return F.smooth_l1_loss(predictions, targets)

    def after_step(self) -> None:
        from lightly.models.utils import update_momentum

        update_momentum(self.backbone, self.teacher_backbone, MOMENTUM)


def gflop() -> float:
    """Of a step, per picture."""
    student = patch_embedding(PATCHES) + blocks(CONTEXT + 1, WIDTH, DEPTH)
    asked = TARGETS * (
        blocks(CONTEXT + TARGET, PREDICTOR_WIDTH, PREDICTOR_DEPTH) + linear(TARGET, PREDICTOR_WIDTH, WIDTH)
    )
    predictor = linear(CONTEXT, WIDTH, PREDICTOR_WIDTH) + asked
    return 3 * (student + predictor) + patch_embedding(PATCHES) + encoder(PATCHES)


COMPARISON = Comparison(make_batch=make_batch, ours=Ours(ours, gflop()), lightly=LightlyIJEPA)
