"""LeJEPA, 2 x 224 and 6 x 96 pixels: ours against lightly's backbone, projector and loss.

Counted per view: patch embedding, encoder, projector, and the projections on 1024 directions.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor

from contenders.parts import (
    LOCAL_PATCHES,
    LOCALS,
    MODEL,
    PATCHES,
    PROGRESS,
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
from unlabeled.pretrain.methods.lejepa import Config

HIDDEN, DIM, SLICES, WEIGHT = 2048, 128, 1024, 0.05


def ours(depth: int) -> Method:
    """Our LeJEPA, drawn to the mean of the large views as lightly's is."""
    vit = EncoderConfig(model=MODEL, positions="learned", depth=depth)
    return Config(encoder=vit, dim=DIM, weight=WEIGHT, centre="global").build()


class LightlyLeJEPA(Peer):
    """The crops of one size go through together, all of them through the projector."""

    renames: ClassVar = {"encoder.vit.": "backbone.vit.", "projector.": "projector.layers."}

    def __init__(self, depth: int) -> None:
        from lightly.loss.lejepa_loss import LeJEPALoss
        from lightly.models.modules.heads import LeJEPAProjectionHead

        super().__init__()
        self.backbone = lightly_vit_of_any_size(depth)
        self.projector = LeJEPAProjectionHead(WIDTH, HIDDEN, DIM)
        self.criterion = LeJEPALoss(lambda_param=WEIGHT)
        self.criterion.sigreg._generate_unit_vectors = directions

    def forward(self, batch: Batch) -> Tensor:
        features = torch.cat([self.backbone(view.flat()[0]) for view in batch.views])
        projections = self.projector(features).unflatten(0, (2 + LOCALS, -1))
        return self.criterion(global_proj=projections[:2], local_proj=projections[2:])


def directions(device: torch.device, dtype: torch.dtype, num_features: int, **_: Any) -> Tensor:
    """Those that ours draws in this step, so that losses can be compared."""
    drawn = torch.empty(num_features, SLICES, dtype=dtype)
    drawn.normal_(generator=torch.Generator().manual_seed(PROGRESS.step))
    return (drawn / drawn.norm(dim=0)).to(device)


def gflop() -> float:
    """Of a step, per picture."""
    large, small = (patch_embedding(patches) + encoder(patches) for patches in (PATCHES, LOCAL_PATCHES))
    heads = linear(2 + LOCALS, WIDTH, HIDDEN, HIDDEN, DIM) + linear(2 + LOCALS, DIM, SLICES)
    return 3 * (2 * large + LOCALS * small + heads)


COMPARISON = Comparison(
    make_batch=multi_crop,
    ours=Ours(ours, gflop()),
    lightly=LightlyLeJEPA,
    note="lightly draws its directions on the device; here both have the same",
)
