"""Detection: boxes of objects and their classes, by torchvision's detectors on a pretrained backbone."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor

from unlabeled.backbone.encoder import Encoder
from unlabeled.backbone.folder import Preprocessing
from unlabeled.data.batch.batch import Batch
from unlabeled.data.batch.loader import ViewDataset
from unlabeled.data.boxed.dataset import BoxDataset
from unlabeled.data.boxed.pairs import BoxedFirst, PairDataset
from unlabeled.data.boxed.view import BoxView
from unlabeled.data.opened import Opened
from unlabeled.data.source import Source
from unlabeled.errors import UserError
from unlabeled.pretrain.method import Output, Progress, Symptom
from unlabeled.report.card import Made
from unlabeled.train.engine import Engine
from unlabeled.train.optimizer import Optim
from unlabeled.train.watch import Watching
from unlabeled.transfer.dense.task import DenseConfig, DenseTask
from unlabeled.transfer.detection import result
from unlabeled.transfer.detection.backbone import Backbone
from unlabeled.transfer.detection.drawing import SHOWN, framed
from unlabeled.transfer.detection.export import write_detector
from unlabeled.transfer.detection.images import boxed
from unlabeled.transfer.detection.score import Scorer
from unlabeled.transfer.detection.soft_teacher import momentum_at
from unlabeled.transfer.detection.unlabelled import SoftTeacher, Unlabelled
from unlabeled.transfer.detector import DETECTORS, Detected, Detector, DetectorConfig, Draw
from unlabeled.transfer.detectors import faster_rcnn, retinanet
from unlabeled.transfer.labels import Labelled, with_unlabelled
from unlabeled.transfer.network import Trained
from unlabeled.transfer.predict import Predict
from unlabeled.transfer.task import Choice, Samples, Task
from unlabeled.transfer.unlabelled import FIELD


class Config(DenseConfig, frozen=True, extra="forbid"):
    """Find objects: a detector on as much of the backbone as the strategy says. Images come with boxes (data of the
    kinds coco and yolo)."""

    headline: ClassVar[str] = "map"
    written: ClassVar[tuple[str, ...]] = ("result.json", "result.md", "detections.json", "detections.jpg")

    name: Literal["detect"] = "detect"
    view: BoxView = Field(BoxView(size=512), description="how images are resized and cut; its size is evaluated too")
    detector: Annotated[DetectorConfig, DETECTORS] = Field(retinanet.Config(), description="from maps to boxes")
    drop_block: float = Field(
        0.0, ge=0, lt=1, description="share of the places of a CNN's last two stages in dropped blocks of 7 (DropBlock)"
    )
    unlabelled: Unlabelled | None = Field(
        None,
        description="pictures without boxes to learn from as well (Soft Teacher, with faster_rcnn), by averaged "
        "weights, which are scored and exported; null = none",
    )

    @model_validator(mode="after")
    def _boxes_can_be_judged(self) -> Config:
        if self.unlabelled is None:
            return self
        if not isinstance(self.detector, faster_rcnn.Config):
            raise ValueError(
                f"unlabelled pictures are learnt from by boxes that a second stage judges, found detector "
                f"{self.detector.name}: set task.detector.name=faster_rcnn, or task.unlabelled=null"
            )
        if self.ema is not None:
            raise ValueError(
                f"ema is {self.ema:g}, but the teacher of unlabelled pictures is the average: set task.ema=null, and "
                "task.unlabelled.momentum"
            )
        return self

    @property
    def without_labels(self) -> Unlabelled | None:
        return self.unlabelled

    def decay(self, step: int) -> float | None:
        """That of the teacher, where there are unlabelled pictures."""
        return self.ema if self.unlabelled is None else momentum_at(step, self.unlabelled.momentum)

    def images(self, data: Opened, watch: Watching | None) -> Labelled:
        hold_out = None if watch is None else watch.hold_out
        return boxed(data, self.fraction, self.fraction_seed, hold_out)

    def samples(self, images: Labelled, data: Opened, how: Samples) -> ViewDataset:
        if how.uncut:
            raise UserError("run.views=device cannot cut pictures with boxes. Set run.views=worker.")
        if self.unlabelled is None:
            return BoxDataset(images.train, [self.view], how.patch, how.seed, base=how.base)
        other, shares = self.unlabelled.seeing(data.config), self.unlabelled.shares
        joined, groups = with_unlabelled(data, images, other, FIELD, shares, len(self.crops))
        source = BoxedFirst(list(joined.parts), order=images.train.classes)
        return PairDataset(source, self.crops, how.patch, how.seed, base=how.base, groups=groups)

    def begin(self, encoder: Encoder, source: Source, trained: Trained | None, seed: int) -> Task:
        return Detection(encoder, self, len(source.classes), seed)

    def scorer(self, predict: Predict, source: Source, train: Source, choice: Choice | None = None) -> Scorer:
        return Scorer(predict, source)

    def write_result(self, output: Path, told: dict[str, Any], engine: Engine, scorer: Scorer) -> None:
        result.write_result(output, told, engine, scorer)

    def check(self, watch: Watching | None, optim: Optim) -> None:
        if watch is not None and watch.metric != "map":
            raise ValueError(f"detect has no {watch.metric} to watch: set watch.metric=map")

    def logged(self, result: dict[str, Any]) -> dict[str, float]:
        return {name: result[name] for name in ("map", "map50", "map75")}

    def describe(self) -> str:
        more = "" if self.unlabelled is None else f", {self.unlabelled.describe()}"
        return f"{self.detector.name}, strategy {self.strategy.name}{more}"


class Detection(DenseTask):
    """A detector whose backbone is an encoder: a copy of it, its heads new.

    Args:
        encoder: at the size of the images.
        config: of the task.
        classes: how many there are.
        seed: of the draws of boxes for the loss.
    """

    vit: ClassVar[str] = "detector.net.backbone.encoder.vit."
    detector: Detector
    average: Detector | None

    def __init__(self, encoder: Encoder, config: Config, classes: int, seed: int) -> None:
        super().__init__(encoder, config)
        self.config, self.classes = config, classes
        backbone = self.based(encoder, config.detector.channels, config.detector.finest, config.drop_block)
        self.detector = config.detector.build(backbone, classes, seed)
        self.average = self.averaged(encoder, self.detector)
        self.soft = None if config.unlabelled is None else SoftTeacher(config.unlabelled, seed)

    @property
    def learner(self) -> Detector:
        return self.detector

    @property
    def backbone(self) -> Backbone:
        found: Backbone = self.detector.net.backbone
        return found

    @property
    def scored(self) -> Detector:
        """The detector with the weights that are scored and exported."""
        return self.detector if self.average is None else self.average

    def forward(self, batch: Batch, progress: Progress) -> Output:
        if batch.boxes is None:  # a batch without values, of the plan
            return Output(self.detector.dense(torch.cat([view.flat()[0] for view in batch.views])), {})
        self.unfreeze(progress)
        if self.soft is None:
            return self._labelled(batch, progress)
        labelled, pairs = self.soft.separate(batch, progress.step)
        loss, metrics, _ = self._labelled(labelled, progress)
        metrics["supervised"] = loss.detach()
        if progress.share < self.soft.config.begin:
            return Output(loss, metrics)
        assert isinstance(self.average, faster_rcnn.FasterRCNN) and isinstance(self.detector, faster_rcnn.FasterRCNN)
        losses, counts = self.soft(self.average, self.detector, pairs)
        more = {name.replace("loss", "pseudo", 1): one.detach() for name, one in losses.items()}
        loss = loss + self.soft.config.weight * torch.stack(list(losses.values())).sum()
        return Output(loss, {**metrics, **more, **counts})

    def _labelled(self, batch: Batch, progress: Progress) -> Output:
        assert batch.boxes is not None
        images, _ = batch.views[0].flat()
        draws = [Draw(progress.step, number) for number in batch.index.tolist()]
        losses = self.detector.losses(images, batch.boxes.each(), draws)
        total = torch.stack(list(losses.values())).sum()
        return Output(total, {f"loss_{name.removeprefix('loss_')}": loss.detach() for name, loss in losses.items()})

    def symptoms(self) -> list[Symptom]:
        return [] if self.soft is None else self.soft.symptoms()

    def predict(self, images: Tensor) -> list[Detected]:
        """The boxes in images [B, C, H, W], by the weights that are scored and exported."""
        return self.scored.detect(images)

    def timed(self, images: Tensor) -> Tensor:
        return self.scored.dense(images)

    @torch.no_grad()
    def pictures(self, batch: Batch) -> Tensor | None:
        """The views with their boxes, and with those that are found: [B, 2, C, H, W]."""
        if batch.boxes is None:
            return None
        images, _ = batch.views[0].flat()
        found = [one.boxes[one.scores >= SHOWN].to(images.device) for one in self.predict(images)]
        true = [corners for corners, _ in batch.boxes.each()]
        return torch.stack([framed(images, true), framed(images, found)], dim=1)

    def export(self, folder: Path, prepared: Preprocessing, made: Made) -> bool:
        encoder = self.scored.net.backbone.encoder
        write_detector(folder, encoder, self.exported(self.scored, encoder), self.config.detector, prepared, made)
        return True

    def loaded_by(self, folder: str, whole: bool) -> str:
        return f"  detector   {folder}  (unlabeled.load_detector({folder!r}))"
