"""Faster R-CNN (Ren et al. 2015) on a feature pyramid (Lin et al. 2017): proposals, then the class and box of each."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Literal

from pydantic import Field
from torch import Tensor
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.generalized_rcnn import GeneralizedRCNN
from torchvision.ops import MultiScaleRoIAlign

from unlabeled.errors import UserError
from unlabeled.transfer.detection.backbone import Backbone
from unlabeled.transfer.detection.sampling import AnchorHead, BoxHeads, Proposals, Sampler
from unlabeled.transfer.detector import AsTheyAre, Detector, DetectorConfig, Draw, Truth, anchors

SIDE = 7  # places of a box that are read, across and down


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
        self.net = GeneralizedRCNN(backbone, proposals, boxes, AsTheyAre())

    def losses(self, images: Tensor, truth: Sequence[Truth], draws: Sequence[Draw]) -> dict[str, Tensor]:
        for stage in (self.net.rpn, self.net.roi_heads):
            stage.fg_bg_sampler.draws = draws
        return super().losses(images, truth, draws)

    def dense(self, images: Tensor) -> Tensor:
        levels = self.net.backbone(images)
        objectness, offsets = self.net.rpn.head(list(levels.values()))
        pooled = levels[self.net.roi_heads.box_roi_pool.featmap_names[-1]].mean((2, 3)).repeat(1, SIDE**2)
        logits, boxes = self.net.roi_heads.box_predictor(self.net.roi_heads.box_head(pooled))
        return sum((one.mean() for one in (*objectness, *offsets, logits, boxes)), start=images.new_zeros(()))
