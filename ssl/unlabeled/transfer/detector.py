"""The contract of detectors: from maps to boxes, on torchvision's detectors. Kinds are the files of `detectors/`."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar, Literal, NamedTuple

import torch
from pydantic import BaseModel, Field
from torch import Tensor, nn
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.image_list import ImageList

from unlabeled.registry import ByFile
from unlabeled.transfer.detection.backbone import Backbone

BoxLoss = Literal["l1", "giou", "ciou"]
Truth = tuple[Tensor, Tensor]  # boxes [n, 4] of an image, pixels, and their classes [n]


class Detected(NamedTuple):
    """The boxes that were found in one image, those of the highest scores first."""

    boxes: Tensor  # [n, 4] float32: left, top, right, bottom, pixels
    scores: Tensor  # [n], 0 to 1
    classes: Tensor  # [n] int64, from 0


class Draw(NamedTuple):
    """All that a draw for an image depends on, beside the seed and what it is for."""

    step: int
    index: int  # type: ignore[assignment]  # the number of the image in its source


class Detector(nn.Module, ABC):
    """A detector of torchvision's on a backbone; it has no background class outside.

    Attributes:
        net: torchvision's module; its `transform` leaves images as they are.
        first: the number that it gives to the first class.
    """

    first: ClassVar[int]
    net: Any

    def losses(self, images: Tensor, truth: Sequence[Truth], draws: Sequence[Draw]) -> dict[str, Tensor]:
        """The losses of normalised images [B, C, H, W] by name: means over images, so that those of processes can be
        averaged. `draws` are for detectors that sample boxes. Only in training mode."""
        targets = [{"boxes": boxes, "labels": classes + self.first} for boxes, classes in truth]
        found: dict[str, Tensor] = self.net(list(images), targets)
        return found

    def detect(self, images: Tensor) -> list[Detected]:
        """The boxes in normalised images [B, C, H, W]. Only in evaluation mode."""
        return [
            Detected(found["boxes"], found["scores"], found["labels"] - self.first) for found in self.net(list(images))
        ]

    @abstractmethod
    def dense(self, images: Tensor) -> Tensor:
        """A number of all outputs at every place for images [B, C, H, W], without boxes: to count memory and time."""


class DetectorConfig(BaseModel, ABC, frozen=True, extra="forbid"):
    """The fields of all detectors; `name` is the name of its file."""

    name: str
    channels: int = Field(256, ge=1, description="of all levels of the pyramid")
    finest: int = Field(
        8, ge=1, description="stride of the finest level, pixels: 4 finds smaller objects, and costs four times as much"
    )
    anchor: float = Field(
        4.0, gt=0, allow_inf_nan=False, description="side of a level's anchors over its stride, the smallest of them"
    )
    box_loss: BoxLoss = Field("l1", description="of boxes: l1 of their offsets, giou or ciou of the boxes themselves")
    score: float = Field(0.05, ge=0, lt=1, description="least score of a box that is found")
    nms: float = Field(0.5, gt=0, le=1, description="overlap above which the lower score of two boxes is dropped")
    most: int = Field(100, ge=1, description="boxes that are found in an image at most")

    @abstractmethod
    def build(self, backbone: Backbone, classes: int, seed: int) -> Detector:
        """The detector with new heads. Raises UserError when the backbone does not suit it."""


class AsTheyAre(nn.Module):
    """In the place of torchvision's transform, which normalises and resizes: views have done both."""

    def forward(self, images: Sequence[Tensor], targets: Any = None) -> tuple[ImageList, Any]:
        sizes = [(image.shape[-2], image.shape[-1]) for image in images]
        return ImageList(torch.stack(list(images)), sizes), targets

    def postprocess(self, found: Any, _seen: Any, _original: Any) -> Any:
        return found


def anchors(strides: Sequence[int], scale: float, octaves: Sequence[float]) -> AnchorGenerator:
    """Anchors of every level: of sides `scale` times its stride, times each of the octaves, in three shapes."""
    sizes = tuple(tuple(scale * stride * 2**octave for octave in octaves) for stride in strides)
    return AnchorGenerator(sizes, ((0.5, 1.0, 2.0),) * len(sizes))


DETECTORS = ByFile("unlabeled.transfer.detectors", DetectorConfig, default="retinanet")
