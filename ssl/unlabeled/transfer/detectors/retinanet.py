"""RetinaNet (Lin et al. 2017, "Focal Loss for Dense Object Detection"): every place of every level votes. It draws
nothing, and divides the losses of each image by that image's own anchors, so that processes agree."""

from __future__ import annotations

from typing import ClassVar, Literal

from torch import Tensor
from torchvision.models.detection.retinanet import RetinaNet, RetinaNetHead

from unlabeled.transfer.detection.backbone import Backbone
from unlabeled.transfer.detector import AsTheyAre, Detector, DetectorConfig, anchors

OCTAVES = (0.0, 1 / 3, 2 / 3)  # anchors of a level


class Config(DetectorConfig, frozen=True, extra="forbid"):
    """One stage, focal loss."""

    name: Literal["retinanet"] = "retinanet"

    def build(self, backbone: Backbone, classes: int, seed: int) -> Detector:
        return Retina(self, backbone, classes)


class Retina(Detector):
    """See the module; classes begin at 0."""

    first: ClassVar[int] = 0

    def __init__(self, config: Config, backbone: Backbone, classes: int) -> None:
        super().__init__()
        made = anchors(backbone.strides, config.anchor, OCTAVES)
        head = Head(backbone.out_channels, made.num_anchors_per_location()[0], classes)
        head.regression_head._loss_type = config.box_loss
        self.net = RetinaNet(
            backbone,
            classes,
            anchor_generator=made,
            head=head,
            score_thresh=config.score,
            nms_thresh=config.nms,
            detections_per_img=config.most,
        )
        self.net.transform = AsTheyAre()

    def dense(self, images: Tensor) -> Tensor:
        found = self.net.head(list(self.net.backbone(images).values()))
        return found["cls_logits"].mean() + found["bbox_regression"].mean()


class Head(RetinaNetHead):
    """torchvision's, whose outputs are float32 whatever the precision of the network."""

    def forward(self, x: list[Tensor]) -> dict[str, Tensor]:
        return {name: found.float() for name, found in super().forward(x).items()}
