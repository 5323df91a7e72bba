"""A detector that learns from images without boxes too: Soft Teacher (Xu et al. 2021), see `soft_teacher`.

What its average finds in a weak view, it is to find itself in a strong one. Boxes of high scores teach classes, boxes
that come back to the same place from wherever the teacher starts teach where boxes end, and where the teacher sees
nothing it teaches background as much as it is sure.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, NamedTuple

import numpy as np
import torch
from pydantic import BaseModel, Field
from torch import Tensor

from unlabeled.data.batch.batch import Batch, ViewBatch
from unlabeled.data.batch.groups import parted
from unlabeled.data.boxed.strong import Angle, Share, StrongView
from unlabeled.data.boxed.view import LEAST, BoxView
from unlabeled.data.label.boxes import BatchBoxes
from unlabeled.data.view.views import Jitter, Probability, View
from unlabeled.pretrain.method import Symptom
from unlabeled.randomness import Stream, stream
from unlabeled.transfer.detection.sampling import Sampled
from unlabeled.transfer.detection.soft_teacher import between, jittered, moved, passing, uncertainty, weights_of
from unlabeled.transfer.detector import Draw, Truth
from unlabeled.transfer.detectors.faster_rcnn import FasterRCNN, Levels
from unlabeled.transfer.unlabelled import WithoutLabels

JITTER = 3  # of the keys of boxes that are drawn, after those of the stages of the detector
Score = Annotated[float, Field(ge=0, lt=1)]


class Strong(BaseModel, frozen=True, extra="forbid"):
    """What a strong view has beyond `task.view`: colours, one of a shift, a turn and a shear, and grey squares."""

    jitter: Jitter | None = Field(
        (0.4, 0.4, 0.4, 0.1),
        description="strength of the jitter of [brightness, contrast, saturation, hue]; null = none",
    )
    grayscale: Probability = Field(0.2, description="probability of grey")
    blur: Probability = Field(0.2, description="probability of a Gaussian blur")
    shift: Share = Field(0.1, description="of the view at most, as a share of its sides")
    rotate: Angle = Field(30.0, description="of the view at most, degrees")
    shear: Angle = Field(30.0, description="of the view at most, degrees")
    erasings: tuple[int, int] = Field((1, 5), description="squares that are made grey, from and to")
    erased: Share = Field(0.2, description="side of such a square at most, as a share of the view's sides")

    def of(self, weak: BoxView) -> StrongView:
        """The strong view of images whose weak one is given."""
        geometry = {name: getattr(weak, name) for name in ("size", "scale", "interpolation", "flip")}
        return StrongView(**geometry, **dict(self))


class Unlabelled(WithoutLabels, frozen=True, extra="forbid"):
    """The `task.unlabelled` section of detection."""

    ratio: int = Field(4, ge=1, description="unlabelled pictures for each one with boxes in a batch")
    weight: float = Field(4.0, ge=0, allow_inf_nan=False, description="of their losses beside those of the others")
    momentum: float = Field(0.999, gt=0, lt=1, description="of the teacher's average per step, which begins as a mean")
    begin: float = Field(
        0.25,
        ge=0,
        lt=1,
        description="share of the run that learns from pictures with boxes alone: no box is sure before",
    )
    found: Score = Field(0.5, description="least score of the teacher's boxes")
    sure: Score = Field(0.9, description="least score of those that teach classes and proposals")
    steady: float = Field(
        0.02,
        gt=0,
        allow_inf_nan=False,
        description="largest deviation, over its sides, of a box that teaches its edges",
    )
    jitters: int = Field(10, ge=2, description="moved copies of a box, from which the teacher finds it again")
    jitter: float = Field(
        0.06, gt=0, allow_inf_nan=False, description="standard deviation of their edges, as a share of the sides"
    )
    strong: Strong = Field(Strong(), description="what their strong view has beyond task.view, which is the weak one")

    def views(self, weak: BoxView) -> list[View]:
        return [weak, self.strong.of(weak)]

    def describe(self) -> str:
        return (
            f"1 : {self.ratio} with unlabelled pictures from {100 * self.begin:g} % of the run, weight {self.weight:g}"
        )


class Pairs(NamedTuple):
    """The unlabelled images of a micro-batch.

    Attributes:
        weak, strong: [U, C, H, W] normalised.
        moves: [U, 2, 3, 3] from the images to both.
        draws: for each.
    """

    weak: Tensor
    strong: Tensor
    moves: Tensor
    draws: list[Draw]


class Found(NamedTuple):
    """The teacher's boxes of an image, in pixels of its weak view: boxes [n, 4], scores and classes [n], and flags [n]
    whether they come back to their place."""

    boxes: Tensor
    scores: Tensor
    classes: Tensor
    steady: Tensor


class SoftTeacher:
    """The losses of the unlabelled images of a batch. All that it draws follows from (seed, step, image)."""

    def __init__(self, config: Unlabelled, seed: int) -> None:
        self.config, self.seed = config, seed

    def separate(self, batch: Batch, step: int) -> tuple[Batch, Pairs]:
        """The images with boxes of a micro-batch, in their weak view alone, and the others."""
        assert batch.boxes is not None and batch.moves is not None
        shares, each = self.config.shares, batch.boxes.each()
        views = [parted(view.pixels.transpose(0, 1), shares) for view in batch.views]
        (labels, _), (index, others) = (parted(rows, shares) for rows in (batch.labels, batch.index))
        own = [each[row] for row in parted(torch.arange(len(each)), shares)[0].tolist()]
        corners, classes = (torch.cat(column) for column in zip(*own, strict=True))
        boxes = BatchBoxes(corners, classes, tuple(len(one) for one, _ in own))
        weak, strong = (unlabelled.flatten(0, 1) for _, unlabelled in views)
        draws = [Draw(step, number) for number in others.tolist()]
        labelled = Batch([ViewBatch(views[0][0].transpose(0, 1), None)], labels, index, boxes=boxes)
        return labelled, Pairs(weak, strong, parted(batch.moves, shares)[1], draws)

    def __call__(
        self, teacher: FasterRCNN, student: FasterRCNN, pairs: Pairs
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """The losses by name, and what is logged of the teacher's boxes: counts in an image."""
        config, shape = self.config, (pairs.strong.shape[-2], pairs.strong.shape[-1])
        with torch.no_grad():
            levels = teacher.levels(pairs.weak)
            found = self.find(teacher, levels, pairs.draws)
            onwards = between(pairs.moves[:, 0], pairs.moves[:, 1])
            back = torch.linalg.inv(onwards)
        sure = [one.scores > config.sure for one in found]
        classes = [truth(one, which, move, shape) for one, which, move in zip(found, sure, onwards, strict=True)]
        edges = [truth(one, one.steady, move, shape) for one, move in zip(found, onwards, strict=True)]

        @torch.no_grad()
        def weigh(boxes: Sequence[Tensor], labels: Sequence[Tensor]) -> list[Tensor]:
            theirs = [moved(one, move, shape) for one, move in zip(boxes, back, strict=True)]
            read = teacher.read(levels, theirs)
            rows = zip(labels, read, strict=True)
            return [weights_of(own, logits.softmax(-1), 0) for own, (logits, _) in rows]

        losses = student.losses_of(pairs.strong, Sampled(classes, pairs.draws), Sampled(edges, pairs.draws), weigh)
        counts = {
            "boxes_found": [len(one.scores) for one in found],
            "boxes_sure": [len(boxes) for boxes, _ in classes],
            "boxes_steady": [len(boxes) for boxes, _ in edges],
        }
        return losses, {name: pairs.weak.new_tensor(some).float().mean() for name, some in counts.items()}

    def find(self, teacher: FasterRCNN, levels: Levels, draws: Sequence[Draw]) -> list[Found]:
        """The teacher's boxes whose score suffices, image by image."""
        some = []
        for one in teacher.found(levels):
            kept = passing(one.boxes, one.scores, self.config.found, LEAST)
            some.append((one.boxes[kept], one.scores[kept], one.classes[kept]))
        noise = [self.noise(draw, len(scores)).to(boxes) for (boxes, scores, _), draw in zip(some, draws, strict=True)]
        starts = [jittered(boxes, one, self.config.jitter) for (boxes, *_), one in zip(some, noise, strict=True)]
        ends = teacher.read(levels, [one.flatten(0, 1) for one in starts])
        made = []
        for (boxes, scores, classes), start, (_, refined) in zip(some, starts, ends, strict=True):
            again = refined[:, teacher.first :].unflatten(0, start.shape[:2])
            unsteady = uncertainty(again, classes).mean(1)
            made.append(Found(boxes, scores, classes, unsteady < self.config.steady))
        return made

    def noise(self, draw: Draw, boxes: int) -> Tensor:
        """Standard normal noise [jitters, boxes, 4] of an image."""
        rng = stream(self.seed, Stream.BOXES, *draw, JITTER)
        return torch.from_numpy(rng.standard_normal((self.config.jitters, boxes, 4)).astype(np.float32))

    def symptoms(self) -> list[Symptom]:
        """The known way in which it teaches nothing."""
        return [
            Symptom(
                "boxes_sure",
                "the teacher is sure of no box in pictures without labels: they teach background alone",
                "Learn longer from those with boxes (task.unlabelled.begin=0.5), or lower task.unlabelled.sure",
                at_most=0.0,
            )
        ]


def truth(found: Found, which: Tensor, move: Tensor, shape: tuple[int, int]) -> Truth:
    """Some of the boxes of an image and their classes, moved into a view of (height, width), those that are still a
    pixel wide and high."""
    boxes = moved(found.boxes[which], move, shape)
    there = passing(boxes, torch.ones_like(boxes[:, 0]), 0.0, LEAST)
    return boxes[there], found.classes[which][there]
