"""What the parity tests of SimMIM share: masks, batches, and the names of parameters."""

from __future__ import annotations

import re
from collections.abc import Callable

import torch
from parity.golden import Golden
from torch import Tensor

from unlabeled.backbone.importers.simmim import RULES
from unlabeled.data.batch.batch import Batch, ViewBatch
from unlabeled.nn.patches import PatchMask


def unit_of(golden: Golden) -> int:
    """Patches along a unit of the masks: the largest squares that are hidden whole or not at all."""
    mask = golden["in/mask"]
    for unit in range(mask.shape[1], 1, -1):
        squares = mask.unfold(1, unit, unit).unfold(2, unit, unit).flatten(3)
        if mask.shape[1] % unit == mask.shape[2] % unit == 0 and (squares == squares[..., :1]).all():
            return unit
    return 1


def mask_of(golden: Golden) -> PatchMask:
    hidden = golden["in/mask"].flatten(1).bool()
    order = hidden.int().argsort(dim=1, stable=True)
    visible = int((~hidden[0]).sum())
    return PatchMask(hidden, order[:, :visible], order[:, visible:])


def batch_of(golden: Golden) -> Batch:
    images, mask = golden["in/imgs"], mask_of(golden).map(lambda t: t.unsqueeze(0))
    return Batch([ViewBatch(images.unsqueeze(0), mask)], torch.full((len(images),), -1), torch.arange(len(images)))


def ours(name: str) -> str:
    """Our name of an official parameter."""
    rule = next(rule for rule in RULES if name.startswith(rule.official))
    renamed = rule.ours + name.removeprefix(rule.official)
    # timm merges a Swin's tokens at the beginning of a stage
    renamed = re.sub(r"^layers\.(\d+)\.downsample\.", lambda found: f"layers.{int(found[1]) + 1}.downsample.", renamed)
    return f"encoder.vit.{renamed}" if rule.to == "encoder" else renamed


def head_as_ours(golden: Golden) -> Callable[[str, Tensor], Tensor]:
    """Rows of the head from pixel shuffle's order (channel, row, column) to ours (row, column, channel)."""
    channels = golden.shape("in/imgs")[1]

    def as_ours(name: str, gradient: Tensor) -> Tensor:
        if not name.startswith("decoder"):
            return gradient
        return gradient.squeeze().unflatten(0, (channels, -1)).transpose(0, 1).flatten(0, 1)

    return as_ours
