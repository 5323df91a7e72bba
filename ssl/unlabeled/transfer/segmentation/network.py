"""A network that names the class of every pixel: a backbone with its pyramid, and a light decoder."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from pydantic import BaseModel, Field
from torch import Tensor, nn
from torch.nn import functional as F

from unlabeled.data.masked.view import UNLABELLED
from unlabeled.transfer.detection.backbone import Backbone
from unlabeled.transfer.detection.pyramid import NormedConv
from unlabeled.transfer.segmentation.upsampling import enlarged


class DecoderConfig(BaseModel, frozen=True, extra="forbid"):
    """The settings of the pyramid and of the decoder on it."""

    channels: int = Field(256, ge=1, description="of all levels of the pyramid")
    width: int = Field(128, ge=1, description="channels of the decoder")
    finest: int = Field(
        4, ge=1, description="stride of the finest level, pixels, to which all are brought: 8 costs a quarter"
    )


class Level(nn.Module):
    """One level of a pyramid brought to the size of the finest one: 3x3 convolution, norm, ReLU and an enlargement by
    two, for each time that it is half as fine; the finest one through the first three, once."""

    def __init__(self, inside: int, width: int, halvings: int) -> None:
        super().__init__()
        count = max(1, halvings)
        self.convs = nn.ModuleList(NormedConv(inside if i == 0 else width, width, 3, "LN") for i in range(count))

    def forward(self, x: Tensor, finest: tuple[int, int]) -> Tensor:
        """Maps [B, width, *finest] of a level [B, inside, h, w]."""
        for left, conv in zip(reversed(range(len(self.convs))), self.convs, strict=True):
            height, width = (-(-side // 2**left) for side in finest)
            x = enlarged(F.relu(conv(x)), (height, width))
        return x


class Decoder(nn.Module):
    """Levels of a pyramid brought to the size of the finest one, added, and classified (Kirillov et al. 2019, "Panoptic
    Feature Pyramid Networks", section 3 and figure 3; the norm is that of ViTDet's pyramid).

    Args:
        inside: channels of the levels.
        width: channels of the decoder.
        strides: of the levels, the finest first, pixels.
        classes: how many there are.
    """

    def __init__(self, inside: int, width: int, strides: Sequence[int], classes: int) -> None:
        super().__init__()
        halvings = [round(math.log2(stride / strides[0])) for stride in strides]
        self.levels = nn.ModuleList(Level(inside, width, number) for number in halvings)
        self.classifier = nn.Conv2d(width, classes, 1)

    def forward(self, levels: Sequence[Tensor]) -> Tensor:
        """Class scores [B, classes, h, w] of levels, the finest [B, inside, h, w] first."""
        finest = (levels[0].shape[-2], levels[0].shape[-1])
        brought = [level(x, finest) for x, level in zip(levels, self.levels, strict=True)]
        found: Tensor = self.classifier(torch.stack(brought).sum(0))
        return found


class Segmenter(nn.Module):
    """From normalised images to a score of every class at every pixel.

    Args:
        backbone: belongs to the network from then on.
        config: its settings.
        classes: how many there are.
    """

    def __init__(self, backbone: Backbone, config: DecoderConfig, classes: int) -> None:
        super().__init__()
        self.backbone = backbone
        strides = backbone.strides[: len(backbone.names)]  # the last level is a part of another
        self.decoder = Decoder(config.channels, config.width, strides, classes)

    def forward(self, images: Tensor) -> Tensor:
        """Class scores float32 [B, classes, H, W] of images [B, C, H, W]."""
        levels = self.backbone(images)
        scores = self.decoder([levels[name] for name in self.backbone.names])
        return enlarged(scores, (images.shape[-2], images.shape[-1]))


def pixel_loss(scores: Tensor, labels: Tensor) -> Tensor:
    """The mean over images of the mean cross-entropy of their labelled pixels, so that processes and parts of a batch
    can be averaged. An image without any counts 0.

    Args:
        scores: [B, classes, H, W].
        labels: int [B, H, W], `UNLABELLED` where there is no class.
    """
    known = labels != UNLABELLED
    # not `cross_entropy`, which on a GPU adds pixels up in an order that changes
    chosen = scores.log_softmax(1).gather(1, labels.long().clamp_min(0).unsqueeze(1)).squeeze(1)
    each = (-chosen * known).flatten(1).sum(1) / known.flatten(1).sum(1).clamp_min(1)
    return each.mean()
