"""Segmentation: the class of every pixel, by a pyramid and a light decoder on a pretrained backbone."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from unlabeled.backbone.encoder import Encoder
from unlabeled.backbone.folder import Preprocessing
from unlabeled.data.batch.batch import Batch
from unlabeled.data.batch.loader import ViewDataset
from unlabeled.data.masked.dataset import MaskDataset
from unlabeled.data.masked.view import UNLABELLED, MaskView
from unlabeled.data.opened import Opened
from unlabeled.errors import UserError
from unlabeled.evaluate.segmentation_values import MaskSettings
from unlabeled.pretrain.method import Output, Progress
from unlabeled.report.card import Made
from unlabeled.train.engine import Engine
from unlabeled.train.optimizer import Optim
from unlabeled.train.watch import Watching
from unlabeled.transfer.dense.task import DenseConfig, DenseTask
from unlabeled.transfer.detection.backbone import Backbone
from unlabeled.transfer.labels import Labelled
from unlabeled.transfer.network import Trained
from unlabeled.transfer.predict import Predict
from unlabeled.transfer.segmentation import result
from unlabeled.transfer.segmentation.drawing import levels
from unlabeled.transfer.segmentation.export import write_segmenter
from unlabeled.transfer.segmentation.images import masked
from unlabeled.transfer.segmentation.network import DecoderConfig, Segmenter, pixel_loss
from unlabeled.transfer.segmentation.score import Scorer
from unlabeled.transfer.task import Choice, Samples, Task


class Config(MaskSettings, DenseConfig, frozen=True, extra="forbid"):
    """Name the class of every pixel: a decoder on as much of the backbone as the strategy says. Masks lie beside the
    images, `train_masks/a/x.png` for `train/a/x.jpg` (data of the kind files). Their values are those that the protocol
    `segmentation` takes: class numbers, 255 for unlabelled pixels, unless the fields say otherwise."""

    headline: ClassVar[str] = "miou"
    written: ClassVar[tuple[str, ...]] = ("result.json", "result.md", "segments.jpg")
    labels: ClassVar[bool] = False

    name: Literal["segment"] = "segment"
    view: MaskView = Field(MaskView(size=512), description="how images are resized and cut; its size is evaluated too")
    decoder: DecoderConfig = Field(DecoderConfig(), description="from maps to classes")

    def images(self, data: Opened, watch: Watching | None) -> Labelled:
        hold_out = None if watch is None else watch.hold_out
        return masked(data, self, self.fraction, self.fraction_seed, hold_out)

    def samples(self, images: Labelled, data: Opened, how: Samples) -> ViewDataset:
        if how.uncut:
            raise UserError("run.views=device cannot cut pictures with masks. Set run.views=worker.")
        return MaskDataset(images.train, [self.view], how.patch, how.seed, base=how.base)

    def begin(self, encoder: Encoder, source: Any, trained: Trained | None, seed: int) -> Task:
        return Segmentation(encoder, self, len(source.classes))

    def scorer(self, predict: Predict, source: Any, train: Any, choice: Choice | None = None) -> Scorer:
        return Scorer(predict, source)

    def write_result(self, output: Path, told: dict[str, Any], engine: Engine, scorer: Scorer) -> None:
        result.write_result(output, told, engine, scorer)

    def check(self, watch: Watching | None, optim: Optim) -> None:
        if watch is not None and watch.metric != "miou":
            raise ValueError(f"segment has no {watch.metric} to watch: set watch.metric=miou")

    def logged(self, result: dict[str, Any]) -> dict[str, float]:
        return {name: result[name] for name in ("miou", "pixel_accuracy")}

    def describe(self) -> str:
        return f"decoder of {self.decoder.width} channels, strategy {self.strategy.name}"


class Segmentation(DenseTask):
    """A network that names the class of every pixel, whose backbone is an encoder: a copy of it, its decoder new.

    Args:
        encoder: at the size of the images.
        config: of the task.
        classes: how many there are.
    """

    vit: ClassVar[str] = "segmenter.backbone.encoder.vit."
    average: Segmenter | None

    def __init__(self, encoder: Encoder, config: Config, classes: int) -> None:
        super().__init__(encoder, config)
        self.config, self.classes = config, classes
        backbone = self.based(encoder, config.decoder.channels, config.decoder.finest)
        self.segmenter = Segmenter(backbone, config.decoder, classes)
        self.average = self.averaged(encoder, self.segmenter)

    @property
    def learner(self) -> Segmenter:
        return self.segmenter

    @property
    def backbone(self) -> Backbone:
        return self.segmenter.backbone

    @property
    def scored(self) -> Segmenter:
        """The network with the weights that are scored and exported."""
        return self.segmenter if self.average is None else self.average

    def forward(self, batch: Batch, progress: Progress) -> Output:
        images, _ = batch.views[0].flat()
        if batch.pixel_labels is None:  # a batch without values, of the plan
            return Output(self.segmenter(images).logsumexp(1).mean(), {})
        self.unfreeze(progress)
        scores, labels = self.segmenter(images), batch.pixel_labels
        right = ((scores.detach().argmax(1) == labels).flatten(1).sum(1)).float()
        known = (labels != UNLABELLED).flatten(1).sum(1).clamp_min(1)
        return Output(pixel_loss(scores, labels), {"train_accuracy": 100 * (right / known).mean()})

    def predict(self, images: Tensor) -> Tensor:
        """Class scores [B, classes, H, W] of images [B, C, H, W], by the weights that are scored and exported."""
        scores: Tensor = self.scored(images)
        return scores

    def timed(self, images: Tensor) -> Tensor:
        return self.predict(images)

    @torch.no_grad()
    def pictures(self, batch: Batch) -> Tensor | None:
        """The views, their masks, and the classes that are found: [B, 3, C, H, W]."""
        if batch.pixel_labels is None:
            return None
        images, _ = batch.views[0].flat()
        found = self.predict(images).argmax(1)
        rows = (levels(images, mask, self.classes) for mask in (batch.pixel_labels, found))
        return torch.stack([images, *rows], dim=1)

    def export(self, folder: Path, prepared: Preprocessing, made: Made) -> bool:
        encoder = self.scored.backbone.encoder
        write_segmenter(folder, encoder, self.exported(self.scored, encoder), self.config.decoder, prepared, made)
        return True

    def loaded_by(self, folder: str, whole: bool) -> str:
        return f"  segmenter  {folder}  (unlabeled.load_segmenter({folder!r}))"
