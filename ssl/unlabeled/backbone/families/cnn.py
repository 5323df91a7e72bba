"""A convolutional network of timm as an encoder: its last feature map are the patches, there is no class token."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from unlabeled.backbone.build import stride_of
from unlabeled.backbone.encoder import Encoder, Tokens
from unlabeled.nn.batchnorm import BatchNorm, synchronise_
from unlabeled.nn.patches import PatchMask
from unlabeled.nn.positions import Grid


class ConvEncoder(Encoder):
    """Wraps a timm CNN without a classifier, one that ends in the mean over its last feature map.

    The "patch" of a position is the network's total stride, though each sees far more. Patches can be neither dropped
    nor replaced. Batch normalisation sees the global batch; names and values of the state dict are timm's.
    """

    def __init__(self, cnn: nn.Module, model: str, arguments: dict[str, Any]) -> None:
        super().__init__(cnn, model, arguments)
        synchronise_(cnn)
        self.has_batch_norm = any(isinstance(part, BatchNorm) for part in cnn.modules())

    @staticmethod
    def require(vit: nn.Module, model: str) -> None:
        stride_of(model)

    def measure(self) -> tuple[int, Grid, int]:
        stride, (height, width) = stride_of(self.model), self.arguments["img_size"]
        return stride, (math.ceil(height / stride), math.ceil(width / stride)), 0

    @property
    def has_class_token(self) -> bool:
        return False

    @property
    def image_size(self) -> Grid:
        """(height, width) in pixels that it was trained at."""
        height, width = self.arguments["img_size"]
        return height, width

    @property
    def depth(self) -> int:
        """Number of stages."""
        return max(stages(self.vit).values())

    def forward(
        self,
        images: Tensor,
        drop: PatchMask | None = None,
        replace: PatchMask | None = None,
        fill: Tensor | None = None,
    ) -> Tokens:
        """Encode images [B, C, H, W] of any size, whole.

        Raises:
            ValueError: patches are to be dropped or replaced.
        """
        if drop is not None or replace is not None:
            raise ValueError(f"the CNN '{self.model}' cannot drop or replace patches. Use a vit_* model.")
        features = self.vit.forward_features(images)
        rows, columns = features.shape[-2:]
        patches = features.flatten(2).transpose(1, 2)
        return Tokens(patches[:, :0], patches, (rows, columns))

    def intermediate(self, images: Tensor, blocks: Sequence[int]) -> list[Tokens]:
        """The last feature map, the only one that there is: `blocks` may name the last stage and no other.

        Raises:
            ValueError: another is asked for.
        """
        if any(block not in (-1, self.depth - 1) for block in blocks):
            raise ValueError(
                f"of the CNN '{self.model}' there is the last stage's map only, found blocks {list(blocks)}"
            )
        return [self(images)] * len(blocks)

    def attention(self, images: Tensor) -> Tensor:
        """Raises ValueError: it has none."""
        raise ValueError(f"the CNN '{self.model}' has no attention. Use a vit_* or beit_* model.")


def stages(cnn: Any) -> dict[str, int]:
    """The stage of every parameter by name: 0 for the stem, 1 and up for stages, as timm groups them."""
    from timm.models import group_parameters

    groups: dict[str, int] = group_parameters(cnn, cnn.group_matcher(coarse=True), reverse=True)
    return groups
