"""iBOT, 2 x 224 and 8 x 96 pixels, 8192 prototypes in a shared head: ours against lightly's parts.

lightly centres hidden patches only, as DINOv2 does; so does ours here. "ibot_published" centres all of them, as iBOT's
code does: its teacher puts the visible patches through the MLP too.

Counted: patch embedding and encoder of 10 crops for the student and of 2 for the teacher; the head where its outputs
enter a loss, on class tokens and hidden patches; for "ibot_published" that MLP besides.
"""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from torch import Tensor

from contenders.dino import (
    BOTTLENECK,
    DROP_PATH,
    HIDDEN,
    LOCALS,
    TEACHER_TEMPERATURE,
    backbone_and_head,
    backbones,
    follow,
    student,
)
from contenders.parts import (
    LOCAL_SIDE,
    PATCH,
    PATCHES,
    SIDE,
    WIDTH,
    Comparison,
    Ours,
    Peer,
    as_batch,
    crops,
    frozen_copy,
    linear,
)
from unlabeled.data.batch.batch import Batch, ViewBatch
from unlabeled.nn.patches import PatchMask
from unlabeled.pretrain.method import Method
from unlabeled.pretrain.methods.ibot import LOCAL, Config

PROTOTYPES = 8192
# what iBOT's ratios give on average: half of the crops hide nothing, the others 30 %
MASKED_SHARE, HIDDEN_PATCHES = 0.5, 59


def make_batch(pictures: int, seed: int) -> Batch:
    """Two large crops and eight small ones of noise; half of the large ones hide patches."""
    generator = torch.Generator().manual_seed(seed)
    large = [masked_crops(generator, pictures, first) for first in (0, 1)]
    return as_batch(pictures, *large, ViewBatch(crops(generator, LOCALS, pictures, LOCAL_SIDE), None))


def masked_crops(generator: torch.Generator, pictures: int, first: int) -> ViewBatch:
    """One large crop of each picture, with random patches hidden in every second from `first` on."""
    order = torch.rand(pictures, PATCHES, generator=generator).argsort(dim=1)
    masked = torch.arange(pictures) % 2 == first
    hidden = (order < HIDDEN_PATCHES) & masked.unsqueeze(1)
    mask = PatchMask(hidden[None], None, None)
    return ViewBatch(crops(generator, 1, pictures), mask, hidden=int(hidden.sum()))


def ours(depth: int, patch_centre: Literal["all", "hidden"] = "hidden") -> Method:
    """Our iBOT."""
    local = LOCAL.model_copy(update={"count": LOCALS})
    return Config(local=local, encoder=student(depth), patch_centre=patch_centre).build()


class LightlyIBOT(Peer):
    """As in lightly's documentation, without its layer scale, with drop path that grows with depth."""

    renames: ClassVar = {
        "encoder.vit.": "backbone.vit.",
        "mask_token": "backbone.mask_token",
        "head.mlp.": "head.layers.",
        "teacher.vit.": "teacher_backbone.vit.",
        "teacher_head.mlp.": "teacher_head.layers.",
    }

    def __init__(self, depth: int) -> None:
        from lightly.loss import DINOLoss, IBOTPatchLoss

        super().__init__()
        self.backbone, self.head = backbone_and_head(depth, PROTOTYPES, DROP_PATH)
        self.teacher_backbone, self.teacher_head = backbone_and_head(depth, PROTOTYPES, 0.0)
        frozen_copy(self.teacher_backbone, self.backbone)
        frozen_copy(self.teacher_head, self.head)
        self.class_loss = DINOLoss(output_dim=PROTOTYPES, teacher_temp=TEACHER_TEMPERATURE)
        self.patch_loss = IBOTPatchLoss(output_dim=PROTOTYPES, teacher_temp=TEACHER_TEMPERATURE)

    def forward(self, batch: Batch) -> Tensor:
        large = torch.cat([view.flat()[0] for view in batch.views[:2]])
        small = batch.views[2].flat()[0]
        hidden = torch.cat([view.flat()[1].hidden for view in batch.views[:2]])  # type: ignore[union-attr]
        mask = torch.cat([hidden.new_zeros(len(hidden), 1), hidden], dim=1)

        with torch.no_grad():
            tokens = self.teacher_backbone.encode(large)
            taught, taught_patches = self.teacher_head(tokens[:, 0]), self.teacher_head(tokens[mask])

        tokens = self.backbone.encode(large, mask=mask)
        learnt, learnt_patches = self.head(tokens[:, 0]), self.head(tokens[mask])
        learnt = torch.cat([learnt, self.head(self.backbone.encode(small)[:, 0])])
        grid = hidden.unflatten(1, (SIDE // PATCH, SIDE // PATCH))
        across = self.class_loss(taught.chunk(2), learnt.chunk(2 + LOCALS))
        return across + self.patch_loss(taught_patches, learnt_patches, grid)

    def after_step(self) -> None:
        follow(self)


def gflop(centred_all: bool = False) -> float:
    """Of a step, per picture."""
    visible = 2 * PATCHES - 2 * MASKED_SHARE * HIDDEN_PATCHES if centred_all else 0
    centring = linear(visible, WIDTH, HIDDEN, HIDDEN, BOTTLENECK)
    patches = 2 * MASKED_SHARE * HIDDEN_PATCHES
    tokens = 3 * (2 + LOCALS + patches) + 2 + patches
    return backbones() + centring + linear(tokens, WIDTH, HIDDEN, HIDDEN, BOTTLENECK, PROTOTYPES)


COMPARISON = Comparison(
    make_batch=make_batch,
    ours=Ours(ours, gflop()),
    lightly=LightlyIBOT,
    note="positions as for DINO; both centre hidden patches only, as lightly does; ibot_published centres all",
    variants={"ibot_published": Ours(lambda depth: ours(depth, "all"), gflop(centred_all=True))},
)
