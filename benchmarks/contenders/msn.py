"""MSN, 2 x 224 and 10 x 96 pixels, 15 % of an anchor's patches dropped: ours against lightly's backbone and loss.

Counted: patch embedding, encoder and head, of the anchor's visible patches and of 10 small crops for the student, of
one whole crop for the teacher; and the prototypes.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn

from contenders.parts import (
    DEPTH,
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
    blocks,
    crops,
    encoder,
    equal_mask,
    frozen_copy,
    lightly_vit_of_any_size,
    linear,
    patch_embedding,
    with_class_token,
)
from unlabeled.backbone.config import EncoderConfig
from unlabeled.data.batch.batch import Batch, ViewBatch
from unlabeled.pretrain.method import Method
from unlabeled.pretrain.methods.msn import Config

FOCALS, VISIBLE, HIDDEN, DIM, PROTOTYPES = 10, 166, 2048, 256, 1024


def make_batch(pictures: int, seed: int) -> Batch:
    """A whole crop, one with hidden patches and ten small ones of noise."""
    generator = torch.Generator().manual_seed(seed)
    whole, seen = crops(generator, 1, pictures), crops(generator, 1, pictures)
    small = ViewBatch(crops(generator, FOCALS, pictures, LOCAL_SIDE), None)
    return as_batch(pictures, ViewBatch(whole, None), ViewBatch(seen, equal_mask(generator, pictures, VISIBLE)), small)


def ours(depth: int) -> Method:
    """Our MSN; positions are interpolated by size, as lightly does."""
    return Config(encoder=EncoderConfig(model=MODEL, positions="learned", depth=depth)).build()


class LightlyMSN(Peer):
    """lightly's backbone and loss; its head lacks hidden biases, so that it is put together here."""

    renames: ClassVar = {
        "encoder.vit.": "backbone.vit.",
        "teacher.vit.": "teacher_backbone.vit.",
        "head.mlp.": "head.layers.",
        "teacher_head.mlp.": "teacher_head.layers.",
    }

    def __init__(self, depth: int) -> None:
        from lightly.loss import MSNLoss

        super().__init__()
        self.backbone, self.teacher_backbone = (lightly_vit_of_any_size(depth) for _ in range(2))
        self.head, self.teacher_head = _head(), _head()
        frozen_copy(self.teacher_backbone, self.backbone)
        frozen_copy(self.teacher_head, self.head)
        self.prototypes = nn.Parameter(torch.empty(PROTOTYPES, DIM))
        self.criterion = MSNLoss()

    def forward(self, batch: Batch) -> Tensor:
        (whole, _), (seen, mask), (small, _) = (view.flat() for view in batch.views)
        assert mask is not None
        keep = with_class_token(mask.indices()[0])
        keep = torch.cat([torch.zeros_like(keep[:, :1]), keep], dim=1)
        anchors = self.backbone(seen, idx_keep=keep), self.backbone(small)
        with torch.no_grad():
            targets = self.teacher_head(self.teacher_backbone(whole))
        return self.criterion(torch.cat([self.head(features) for features in anchors]), targets, self.prototypes)

    def after_step(self) -> None:
        from lightly.models.utils import update_momentum

        update_momentum(self.backbone, self.teacher_backbone, MOMENTUM)
        update_momentum(self.head, self.teacher_head, MOMENTUM)


def _head() -> nn.Module:
    from lightly.models.modules.heads import ProjectionHead

    hidden = ((width, HIDDEN, nn.BatchNorm1d(HIDDEN), nn.GELU(), True) for width in (WIDTH, HIDDEN))
    head: nn.Module = ProjectionHead([*hidden, (HIDDEN, DIM, None, None)])
    return head


def gflop() -> float:
    """Of a step, per picture."""
    seen = patch_embedding(PATCHES) + blocks(VISIBLE + 1, WIDTH, DEPTH)
    small = FOCALS * (patch_embedding(LOCAL_PATCHES) + encoder(LOCAL_PATCHES))
    anchors = linear(1 + FOCALS, WIDTH, HIDDEN, HIDDEN, DIM, PROTOTYPES)
    target = patch_embedding(PATCHES) + encoder(PATCHES) + linear(1, WIDTH, HIDDEN, HIDDEN, DIM, PROTOTYPES)
    return 3 * (seen + small + anchors) + target


COMPARISON = Comparison(
    make_batch=make_batch,
    ours=Ours(ours, gflop()),
    lightly=LightlyMSN,
    note="lightly's head has no hidden biases; here they are as official",
)
