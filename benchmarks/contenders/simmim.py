"""SimMIM on a plain ViT: ours against lightly's, and ours on the official BEiT-style encoder, which lightly lacks.

Counted: patch embedding of all 196 patches, encoder over 197 tokens, prediction of all 196 patches.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn

from contenders.parts import (
    MODEL,
    PATCH,
    PATCHES,
    PIXELS,
    SIDE,
    WIDTH,
    Comparison,
    Ours,
    Peer,
    as_batch,
    crops,
    encoder,
    equal_mask,
    linear,
    patch_embedding,
    timm_vit,
    with_class_token,
)
from unlabeled.backbone.config import EncoderConfig
from unlabeled.data.batch.batch import Batch, ViewBatch
from unlabeled.data.masks.random import Config as RandomMask
from unlabeled.data.view.views import View
from unlabeled.pretrain.method import Method
from unlabeled.pretrain.methods.simmim import Config

HIDDEN = 120  # 30 of 49 units of 2 x 2 patches


def make_batch(pictures: int, seed: int) -> Batch:
    """Noise and random masks."""
    generator = torch.Generator().manual_seed(seed)
    mask = equal_mask(generator, pictures, PATCHES - HIDDEN)
    return as_batch(pictures, ViewBatch(crops(generator, 1, pictures), mask))


def ours(depth: int) -> Method:
    """Our SimMIM with learned absolute positions."""
    return _build(EncoderConfig(model=MODEL, positions="learned", depth=depth))


def ours_relative(depth: int) -> Method:
    """Our SimMIM as published: relative positions, layer scale."""
    small = {"width": WIDTH, "heads": WIDTH // 64, "depth": depth}
    return _build(EncoderConfig(model="beit_base_patch16_224", positions="relative", **small))


def _build(config: EncoderConfig) -> Method:
    view = View(size=SIDE, interpolation="bilinear", mask=RandomMask(ratio=0.6, unit=32))
    return Config(view=view, encoder=config).build()


class LightlySimMIM(Peer):
    """As in lightly's documentation."""

    renames: ClassVar = {
        "encoder.vit.": "backbone.vit.",
        "mask_token": "backbone.mask_token",
        "decoder.head.": "decoder.",
    }

    def __init__(self, depth: int) -> None:
        from lightly.models.modules import MaskedVisionTransformerTIMM

        super().__init__()
        self.backbone = MaskedVisionTransformerTIMM(vit=timm_vit(depth), pos_embed_initialization="learn")
        self.decoder = nn.Linear(WIDTH, PIXELS)
        self.criterion = nn.L1Loss()

    def forward(self, batch: Batch) -> Tensor:
        from lightly.models import utils

        images, mask = batch.views[0].flat()
        assert mask is not None
        hidden = with_class_token(mask.indices()[1])
        encoded = self.backbone.encode(images, idx_mask=hidden)
        prediction = self.decoder(utils.get_at_index(encoded, hidden))
        return self.criterion(prediction, utils.get_at_index(utils.patchify(images, PATCH), hidden - 1))


def gflop() -> float:
    """Of a step, per picture."""
    return 3 * (patch_embedding(PATCHES) + encoder(PATCHES) + linear(PATCHES, WIDTH, PIXELS))


COMPARISON = Comparison(
    make_batch=make_batch,
    ours=Ours(ours, gflop()),
    lightly=LightlySimMIM,
    note="both on a plain ViT: lightly has no relative positions",
    variants={"simmim_relative": Ours(ours_relative, gflop())},
)
