"""Faster R-CNN (Ren et al. 2015) on a feature pyramid (Lin et al. 2017): proposals, then the class and box of each."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, Literal, NamedTuple

import torch
from pydantic import Field
from torch import Tensor
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.generalized_rcnn import GeneralizedRCNN
from torchvision.models.detection.image_list import ImageList
from torchvision.ops import MultiScaleRoIAlign, clip_boxes_to_image

from unlabeled.errors import UserError
from unlabeled.transfer.detection.backbone import Backbone
from unlabeled.transfer.detection.sampling import AnchorHead, BoxHeads, Proposals, Sampled, Sampler, Weigh
from unlabeled.transfer.detector import AsTheyAre, Detected, Detector, DetectorConfig, Draw, Truth, anchors

SIDE = 7  # places of a box that are read, across and down


class Levels(NamedTuple):
    """What a backbone makes of images."""

    maps: dict[str, Tensor]
    images: ImageList

    @property
    def shapes(self) -> list[tuple[int, int]]:
        """(height, width) of each image, pixels."""
        return self.images.image_sizes


class Config(DetectorConfig, frozen=True, extra="forbid"):
    """Two stages; boxes of each are sampled for the loss."""

    name: Literal["faster_rcnn"] = "faster_rcnn"
    finest: int = Field(
        4, ge=1, description="stride of the finest level, pixels: 4 finds smaller objects, and costs four times as much"
    )
    anchor: float = Field(8.0, gt=0, allow_inf_nan=False, description="side of a level's anchors over its stride")
    anchors: int = Field(256, ge=2, description="anchors of an image that the first stage's loss is computed on")
    proposals: int = Field(512, ge=4, description="proposals of an image that the second stage's loss is computed on")
    kept: int = Field(1000, ge=1, description="proposals of an image that the second stage sees; twice as many learn")
    width: int = Field(1024, ge=1, description="of the two layers that read a proposal")

    def build(self, backbone: Backbone, classes: int, seed: int) -> Detector:
        odd = [stride for stride in backbone.strides if stride & (stride - 1)]
        if odd:
            raise UserError(
                f"faster_rcnn reads boxes from levels of strides 4, 8, 16 and so on, found {backbone.strides} with "
                f"{backbone.encoder.model}. Set task.detector.name=retinanet, or use a network with patches of 16."
            )
        return FasterRCNN(self, backbone, classes, seed)


class FasterRCNN(Detector):
    """See the module; class 0 is the background."""

    first: ClassVar[int] = 1

    def __init__(self, config: Config, backbone: Backbone, classes: int, seed: int) -> None:
        super().__init__()
        made, channels = anchors(backbone.strides, config.anchor, (0.0,)), backbone.out_channels
        kept = {"training": 2 * config.kept, "testing": config.kept}
        head = AnchorHead(channels, made.num_anchors_per_location()[0])
        proposals = Proposals(made, head, 0.7, 0.3, config.anchors, 0.5, kept, kept, nms_thresh=0.7)
        boxes = BoxHeads(
            MultiScaleRoIAlign(backbone.names, SIDE, sampling_ratio=2),
            TwoMLPHead(channels * SIDE**2, config.width),
            FastRCNNPredictor(config.width, classes + 1),
            *(0.5, 0.5, config.proposals, 0.25, None),
            *(config.score, config.nms, config.most),
        )
        boxes.box_loss = config.box_loss
        proposals.fg_bg_sampler = Sampler(config.anchors, 0.5, seed, 0)
        boxes.fg_bg_sampler = Sampler(config.proposals, 0.25, seed, 1)
        self.edges = Sampler(config.proposals, 0.25, seed, 2)
        self.net = GeneralizedRCNN(backbone, proposals, boxes, AsTheyAre())

    def losses(self, images: Tensor, truth: Sequence[Truth], draws: Sequence[Draw]) -> dict[str, Tensor]:
        for stage in (self.net.rpn, self.net.roi_heads):
            stage.fg_bg_sampler.draws = draws
        return super().losses(images, truth, draws)

    def levels(self, images: Tensor) -> Levels:
        """The maps of normalised images [B, C, H, W]."""
        batch, _ = self.net.transform(list(images))
        return Levels(self.net.backbone(batch.tensors), batch)

    def found(self, levels: Levels) -> list[Detected]:
        """The boxes in images. Only in evaluation mode."""
        proposals, _ = self.net.rpn(levels.images, levels.maps)
        some, _ = self.net.roi_heads(levels.maps, proposals, levels.shapes)
        return [Detected(one["boxes"], one["scores"], one["labels"] - self.first) for one in some]

    def read(self, levels: Levels, boxes: Sequence[Tensor]) -> list[tuple[Tensor, Tensor]]:
        """For boxes [n, 4] of each image logits [n, classes + 1], the background first, and where the box ends that is
        of each class, [n, classes + 1, 4], cut to the image."""
        heads: Any = self.net.roi_heads
        logits, deltas = heads.read(levels.maps, list(boxes), levels.shapes)
        counts = [len(one) for one in boxes]
        ends = heads.box_coder.decode_single(deltas, torch.cat(list(boxes))).unflatten(1, (-1, 4))
        images = zip(logits.split(counts), ends.split(counts), levels.shapes, strict=True)
        return [(own, clip_boxes_to_image(some, shape)) for own, some, shape in images]

    def losses_of(self, images: Tensor, classes: Sampled, edges: Sampled, weigh: Weigh) -> dict[str, Tensor]:
        """The losses of images [B, C, H, W] whose boxes are not certain, by name: proposals and classes by some boxes,
        where the weight of each in the loss is what `weigh` says, and edges by others."""
        rpn, heads, targets = self.net.rpn, self.net.roi_heads, classes.targets()
        rpn.fg_bg_sampler.draws = heads.fg_bg_sampler.draws = classes.draws
        self.edges.draws = edges.draws
        levels = self.levels(images)
        proposals, losses = rpn(levels.images, levels.maps, targets)
        how = (levels.maps, proposals, levels.shapes)
        of_classes = heads.classes_loss(*how, targets, weigh)
        of_edges = heads.boxes_loss(*how, edges.targets(), self.edges)
        return {**losses, "loss_classifier": of_classes, "loss_box_reg": of_edges}

    def dense(self, images: Tensor) -> Tensor:
        levels = self.net.backbone(images)
        objectness, offsets = self.net.rpn.head(list(levels.values()))
        pooled = levels[self.net.roi_heads.box_roi_pool.featmap_names[-1]].mean((2, 3)).repeat(1, SIDE**2)
        logits, boxes = self.net.roi_heads.box_predictor(self.net.roi_heads.box_head(pooled))
        return sum((one.mean() for one in (*objectness, *offsets, logits, boxes)), start=images.new_zeros(()))
