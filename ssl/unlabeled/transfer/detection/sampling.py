"""Faster R-CNN's two stages as torchvision has them, with samples and losses by which processes agree.

torchvision draws boxes from the global random state and divides by all boxes of a process; here every image has a draw
of its own, and its losses are divided by its own boxes. Where all images have as many, the loss is torchvision's.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.models.detection.roi_heads import RoIHeads
from torchvision.models.detection.rpn import RegionProposalNetwork, RPNHead
from torchvision.ops import complete_box_iou_loss, generalized_box_iou_loss

from unlabeled.randomness import Stream, stream
from unlabeled.transfer.detection.soft_teacher import weighted_cross_entropy

Boxes = Sequence[Tensor]  # [n, 4] of each image
Weigh = Callable[[Boxes, Sequence[Tensor]], list[Tensor]]  # from boxes and their labels [n] to weights [n]
BETA = 1 / 9  # where the smooth L1 loss becomes linear
IOU_LOSSES = {"giou": generalized_box_iou_loss, "ciou": complete_box_iou_loss}


class Sampled(NamedTuple):
    """What boxes are compared with, and what their draws depend on, image by image."""

    truth: Sequence[tuple[Tensor, Tensor]]  # boxes [n, 4] and classes [n], from 0
    draws: Sequence[tuple[int, int]]  # (step, number)

    def targets(self) -> list[dict[str, Tensor]]:
        """As torchvision has them, classes from 1."""
        return [{"boxes": boxes, "labels": classes + 1} for boxes, classes in self.truth]


class Sampler:
    """Draws anchors or proposals for the loss, from (seed, step, image, stage) alone.

    Args:
        size: boxes of an image.
        positive: largest share of them that lies on objects.
        seed: of the run.
        stage: a number that tells the stages of a detector apart.
    """

    def __init__(self, size: int, positive: float, seed: int, stage: int) -> None:
        self.size, self.positive, self.seed, self.stage = size, positive, seed, stage
        self.draws: Sequence[tuple[int, int]] = ()  # (step, number) of the images that come next

    def __call__(self, labels: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """Masks [n] uint8 of the boxes on objects and of those on background, for labels [n] of each image: at least 1
        on an object, 0 on background, -1 on neither."""
        drawn = [self._of_image(*draw, found) for draw, found in zip(self.draws, labels, strict=True)]
        return [positive for positive, _ in drawn], [negative for _, negative in drawn]

    def _of_image(self, step: int, index: int, labels: Tensor) -> tuple[Tensor, Tensor]:
        rng = stream(self.seed, Stream.BOXES, step, index, self.stage)
        positive, negative = torch.where(labels >= 1)[0], torch.where(labels == 0)[0]
        objects = min(len(positive), int(self.size * self.positive))
        background = min(len(negative), self.size - objects)
        return _mask(labels, positive, objects, rng), _mask(labels, negative, background, rng)


def _mask(labels: Tensor, among: Tensor, count: int, rng: np.random.Generator) -> Tensor:
    chosen = torch.from_numpy(
        rng.choice(len(among), count, replace=False, shuffle=False) if count else np.empty(0, int)
    )
    mask = torch.zeros_like(labels, dtype=torch.uint8)
    mask[among[chosen.to(among.device)]] = 1
    return mask


class AnchorHead(RPNHead):
    """torchvision's, whose outputs are float32 whatever the precision of the network."""

    def forward(self, x: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        objectness, offsets = super().forward(x)
        return [one.float() for one in objectness], [one.float() for one in offsets]


class Proposals(RegionProposalNetwork):
    """The first stage: which anchors lie on an object, and where it ends."""

    def compute_loss(
        self, objectness: Tensor, pred_bbox_deltas: Tensor, labels: list[Tensor], regression_targets: list[Tensor]
    ) -> tuple[Tensor, Tensor]:
        """Means over images of both losses; the arguments are torchvision's."""
        counts = [len(one) for one in labels]
        images = zip(
            objectness.flatten().split(counts),
            pred_bbox_deltas.split(counts),
            labels,
            regression_targets,
            *self.fg_bg_sampler(labels),
            strict=True,
        )
        found = [_proposal_losses(*image) for image in images]
        return _mean([one for one, _ in found]), _mean([other for _, other in found])


def _proposal_losses(
    objectness: Tensor, deltas: Tensor, labels: Tensor, targets: Tensor, positive: Tensor, negative: Tensor
) -> tuple[Tensor, Tensor]:
    """Losses of one image: whether its sampled anchors lie on objects, and the offsets of those that do."""
    on, sampled = positive.bool(), (positive | negative).bool()
    guess = F.binary_cross_entropy_with_logits(objectness[sampled], labels[sampled].to(objectness.dtype))
    offsets = F.smooth_l1_loss(deltas[on], targets[on], beta=BETA, reduction="sum")
    return guess, offsets / sampled.sum()


class BoxHeads(RoIHeads):
    """The second stage: the class of a proposal, and the box itself.

    Attributes:
        box_loss: l1, giou or ciou.
        fg_bg_sampler: a `Sampler`.
    """

    box_loss: str = "l1"
    fg_bg_sampler: Any

    def forward(self, features: Any, proposals: Any, image_shapes: Any, targets: Any = None) -> Any:
        """As torchvision's, with means over images of the losses."""
        if not self.training:
            return super().forward(features, proposals, image_shapes, targets)
        proposals, _, labels, regression = self.select_training_samples(proposals, targets)
        logits, deltas = self.read(features, proposals, image_shapes)
        counts = [len(one) for one in labels]
        images = zip(logits.split(counts), deltas.split(counts), labels, regression, proposals, strict=True)
        found = [self._losses(*image) for image in images]
        losses = {"loss_classifier": _mean([one for one, _ in found]), "loss_box_reg": _mean([two for _, two in found])}
        return [], losses

    def classes_loss(self, features: Any, proposals: Any, image_shapes: Any, targets: Any, weigh: Weigh) -> Tensor:
        """The loss of the classes of sampled boxes, each with the weight that `weigh` gives: a mean over images."""
        boxes, _, labels, _ = self.select_training_samples(proposals, targets)
        logits, _ = self.read(features, boxes, image_shapes)
        images = zip(logits.split([len(one) for one in labels]), labels, weigh(boxes, labels), strict=True)
        return _mean([weighted_cross_entropy(*image) for image in images])

    def boxes_loss(self, features: Any, proposals: Any, image_shapes: Any, targets: Any, sampler: Sampler) -> Tensor:
        """The loss of boxes alone, of those that a sampler draws: a mean over images."""
        own, self.fg_bg_sampler = self.fg_bg_sampler, sampler
        try:
            boxes, _, labels, regression = self.select_training_samples(proposals, targets)
        finally:
            self.fg_bg_sampler = own
        logits, deltas = self.read(features, boxes, image_shapes)
        counts = [len(one) for one in labels]
        images = zip(logits.split(counts), deltas.split(counts), labels, regression, boxes, strict=True)
        return _mean([self._losses(*image)[1] for image in images])

    def read(self, features: Any, boxes: Any, image_shapes: Any) -> tuple[Tensor, Tensor]:
        """Logits [all, classes + 1], the background first, and offsets for each class [all, 4 (classes + 1)] of boxes
        [n, 4] of each image."""
        logits, deltas = self.box_predictor(self.box_head(self.box_roi_pool(features, boxes, image_shapes)))
        return logits.float(), deltas.float()

    def _losses(
        self, logits: Tensor, deltas: Tensor, labels: Tensor, targets: Tensor, boxes: Tensor
    ) -> tuple[Tensor, Tensor]:
        on = torch.where(labels > 0)[0]
        own = deltas.unflatten(1, (-1, 4))[on, labels[on]]
        if self.box_loss == "l1":
            found = F.smooth_l1_loss(own, targets[on], beta=BETA, reduction="sum")
        else:
            decoded, true = (self.box_coder.decode_single(one, boxes[on]) for one in (own, targets[on]))
            found = IOU_LOSSES[self.box_loss](decoded, true, reduction="sum")
        return F.cross_entropy(logits, labels), found / len(labels)


def _mean(losses: Sequence[Tensor]) -> Tensor:
    return torch.stack(list(losses)).mean()
