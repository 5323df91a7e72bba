"""Any encoder as the backbone of torchvision's detectors: maps of several strides, all with as many channels."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torchvision.ops import drop_block2d
from torchvision.ops.feature_pyramid_network import FeaturePyramidNetwork, LastLevelMaxPool

from unlabeled.backbone.encoder import Encoder
from unlabeled.errors import UserError
from unlabeled.nn.modes import without_values
from unlabeled.transfer.detection.pyramid import SimplePyramid

FACTORS = (4.0, 2.0, 1.0, 0.5)
STAGES = 4  # of a network with several resolutions, the last ones
NEARLY = 0.75  # a level is no finer than asked for where its stride is at least this share of it
DROPPED, BLOCK = 2, 7  # stages of which blocks are dropped, the last ones, and the side of a block


class Backbone(nn.Module):
    """An encoder and the pyramid on it.

    A network of one resolution, such as a plain ViT, gets ViTDet's pyramid on the output of its last block; others
    get torchvision's feature pyramid on their last four resolutions. Both end with a level of half the last one's.

    Args:
        encoder: belongs to the backbone from then on; what lies behind its maps, such as a final norm, does not learn.
        channels: of all levels.
        finest: stride of the finest level, pixels, unless the encoder's own are coarser.
        drop_block: probability that a place of the last two stages is inside a dropped block (DropBlock).

    Raises:
        UserError: blocks are to be dropped, and there are no stages.
    """

    def __init__(self, encoder: Encoder, channels: int, finest: int, drop_block: float = 0.0) -> None:
        super().__init__()
        shapes = stage_shapes(encoder)
        height = encoder.image_size[0]
        self.encoder, self.out_channels = encoder, channels
        wanted = [number for number in last_of_each(shapes) if height / shapes[number][-2] >= NEARLY * finest]
        self.stages = wanted[-STAGES:] or [len(shapes) - 1]
        self.strides = [round(height / shapes[number][-2]) for number in self.stages]
        self.drop: nn.Module | None = None
        if len(last_of_each(shapes)) == 1:
            if drop_block:
                raise UserError(
                    f"task.drop_block={drop_block:g} drops blocks of a CNN's stages, and "
                    f"{encoder.in_words(encoder.model)} has one resolution. Set task.drop_block=0; "
                    "task.strategy.drop_path does the like."
                )
            factors = factors_for(stride := self.strides[0], finest)
            self.pyramid: nn.Module = SimplePyramid(shapes[-1][1], channels, factors, "LN", stride)
            self.strides = [int(stride / factor) for factor in factors]
        else:
            inside = [shapes[number][1] for number in self.stages]
            self.pyramid = FeaturePyramidNetwork(inside, channels, LastLevelMaxPool())
            self.drop = DropBlock(drop_block) if drop_block else None
        self.strides.append(2 * self.strides[-1])
        for name, parameter in encoder.vit.named_parameters():
            if encoder.layer_of(name) > encoder.depth:
                parameter.requires_grad_(False)

    def forward(self, images: Tensor) -> OrderedDict[str, Tensor]:
        """Levels of images [B, C, H, W], the finest first, [B, channels, H / stride, W / stride]."""
        found = self.encoder.stages(images)
        maps = [found[number] for number in self.stages]
        if self.drop is not None:
            maps = [*maps[:-DROPPED], *map(self.drop, maps[-DROPPED:])]
        single = isinstance(self.pyramid, SimplePyramid)
        levels = self.pyramid(maps[-1] if single else OrderedDict((str(i), one) for i, one in enumerate(maps)))
        return OrderedDict((name, level.float()) for name, level in levels.items())

    @property
    def names(self) -> list[str]:
        """The names of the levels that boxes are cut from: all but the last."""
        if isinstance(self.pyramid, SimplePyramid):
            return list(self.pyramid.names)
        return [str(number) for number in range(len(self.stages))]


class DropBlock(nn.Module):
    """Squares of maps [B, C, H, W] become 0 in training (Ghiasi et al. 2018); in small maps, smaller squares."""

    def __init__(self, probability: float) -> None:
        super().__init__()
        self.probability = probability

    def forward(self, x: Tensor) -> Tensor:
        side = min(BLOCK, *x.shape[-2:])
        return drop_block2d(x, self.probability, side - (side + 1) % 2, training=self.training)


def stage_shapes(encoder: Encoder) -> list[tuple[int, ...]]:
    """The shapes [1, D, rows, columns] of an encoder's maps for an image of its size, found on the meta device."""
    with without_values():
        twin = type(encoder).build(encoder.model, encoder.arguments, encoder.interpolation).eval()
        images = torch.empty(1, encoder.channels, *encoder.image_size, device="meta")
        return [tuple(one.shape) for one in twin.stages(images)]


def last_of_each(shapes: Sequence[tuple[int, ...]]) -> list[int]:
    """The number of the deepest map of every resolution."""
    return sorted({shape[-2:]: number for number, shape in enumerate(shapes)}.values())


def factors_for(stride: int, finest: int) -> list[float]:
    """The factors of ViTDet's pyramid on a map of a stride: whole strides of nearly `finest` and more."""
    found = [factor for factor in FACTORS if stride / factor >= NEARLY * finest and stride % factor == 0]
    return found or [FACTORS[-1]]
