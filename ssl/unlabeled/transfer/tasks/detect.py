"""Detection: boxes of objects and their classes, by torchvision's detectors on a pretrained backbone."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import torch
from pydantic import Field, field_validator
from torch import Tensor, nn

from unlabeled.backbone.encoder import Encoder
from unlabeled.backbone.folder import Preprocessing
from unlabeled.data.batch.batch import Batch
from unlabeled.data.batch.loader import ViewDataset
from unlabeled.data.boxed.dataset import BoxDataset
from unlabeled.data.boxed.view import BoxView
from unlabeled.data.opened import Opened
from unlabeled.data.source import Source
from unlabeled.errors import UserError
from unlabeled.nn.batchnorm import normalises
from unlabeled.nn.teacher import ema_, follow_
from unlabeled.pretrain.method import Output, Progress
from unlabeled.report.card import Made
from unlabeled.train.engine import Engine
from unlabeled.train.optimizer import Optim
from unlabeled.train.watch import Watching
from unlabeled.transfer.detection import result
from unlabeled.transfer.detection.backbone import Backbone
from unlabeled.transfer.detection.drawing import SHOWN, framed
from unlabeled.transfer.detection.export import write_detector
from unlabeled.transfer.detection.images import boxed
from unlabeled.transfer.detection.score import Scorer
from unlabeled.transfer.detector import DETECTORS, Detected, Detector, DetectorConfig, Draw
from unlabeled.transfer.detectors import retinanet
from unlabeled.transfer.labels import Labelled
from unlabeled.transfer.network import Trained
from unlabeled.transfer.predict import Predict
from unlabeled.transfer.strategies import full
from unlabeled.transfer.strategy import STRATEGIES, Strategy
from unlabeled.transfer.task import Choice, Samples, Task, TaskConfig

HEIGHT = 8  # of a probe for the features that a strategy would normalise
VIT = "detector.net.backbone.encoder.vit."  # the names of a timm model's parameters in the method


class Config(TaskConfig, frozen=True, extra="forbid"):
    """Find objects: a detector on as much of the backbone as the strategy says. Images come with boxes (data of the
    kinds coco and yolo)."""

    headline: ClassVar[str] = "map"
    written: ClassVar[tuple[str, ...]] = ("result.json", "result.md", "detections.json", "detections.jpg")

    name: Literal["detect"] = "detect"
    view: BoxView = Field(BoxView(size=512), description="how images are resized and cut; its size is evaluated too")
    strategy: Annotated[Strategy, STRATEGIES] = Field(full.Config(), description="which parts learn, how fast and when")
    detector: Annotated[DetectorConfig, DETECTORS] = Field(retinanet.Config(), description="from maps to boxes")
    drop_block: float = Field(
        0.0, ge=0, lt=1, description="share of the places of a CNN's last two stages in dropped blocks of 7 (DropBlock)"
    )
    ema: float | None = Field(
        None,
        gt=0,
        lt=1,
        description="decay per step of averaged weights, which are then scored and exported; null = none",
    )

    @field_validator("strategy")
    @classmethod
    def _for_a_backbone(cls, strategy: Strategy) -> Strategy:
        if strategy.from_classifier or strategy.own_pooling or strategy.head_norm(HEIGHT) is not None:
            raise ValueError(
                f"strategy {strategy.name} is for classifiers: expected frozen, full, differential, gradual or lora"
            )
        return strategy

    @property
    def way(self) -> str:
        return self.strategy.name

    def images(self, data: Opened, watch: Watching | None) -> Labelled:
        hold_out = None if watch is None else watch.hold_out
        return boxed(data, self.fraction, self.fraction_seed, hold_out)

    def samples(self, images: Labelled, data: Opened, how: Samples) -> ViewDataset:
        if how.uncut:
            raise UserError("run.views=device cannot cut pictures with boxes. Set run.views=worker.")
        return BoxDataset(images.train, [self.view], how.patch, how.seed, base=how.base)

    def begin(self, encoder: Encoder, source: Source, trained: Trained | None, seed: int) -> Task:
        return Detection(encoder, self, len(source.classes), seed)

    def scorer(self, predict: Predict, source: Source, train: Source, choice: Choice | None = None) -> Scorer:
        return Scorer(predict, source)

    def write_result(self, output: Path, told: dict[str, Any], engine: Engine, scorer: Scorer) -> None:
        result.write_result(output, told, engine, scorer)

    def write_looks(self, folder: Path, scorer: Scorer, method: Any, look: Any) -> str:
        return ""  # its pictures are part of the result

    def check(self, watch: Watching | None, optim: Optim) -> None:
        if watch is not None and watch.metric != "map":
            raise ValueError(f"detect has no {watch.metric} to watch: set watch.metric=map")

    def logged(self, result: dict[str, Any]) -> dict[str, float]:
        return {name: result[name] for name in ("map", "map50", "map75")}

    def describe(self) -> str:
        return f"{self.detector.name}, strategy {self.strategy.name}"

    def unfreezing(self, method: Any, epochs: float) -> str:
        return self.strategy.plan(method.depth, epochs)


class Detection(Task):
    """A detector whose backbone is an encoder: a copy of it, its heads new.

    Args:
        encoder: at the size of the images.
        config: of the task.
        classes: how many there are.
        seed: of the draws of boxes for the loss.
    """

    detector: Detector

    def __init__(self, encoder: Encoder, config: Config, classes: int, seed: int) -> None:
        super().__init__()
        self.config, self.strategy, self.classes = config, config.strategy, classes
        self.architecture, self.family = encoder.model, type(encoder)
        self.arguments, self.interpolation = encoder.arguments, encoder.interpolation
        self.depth = encoder.depth + 1  # layers below the heads, the embeddings among them
        twin = type(encoder).build(
            encoder.model, encoder.arguments, encoder.interpolation, self.strategy.last_drop_path()
        )
        twin.load_state_dict(encoder.state_dict())
        backbone = Backbone(twin, config.detector.channels, config.detector.finest, config.drop_block)
        self.strategy.start_(twin.vit, type(encoder), (), ())
        self.detector = config.detector.build(backbone, classes, seed)
        self.layers = {name: encoder.layer_of(name) for name, _ in twin.vit.named_parameters()}
        self.waiting = list(self._waiting())
        self.average: Detector | None = None
        if config.ema is not None:
            self.average = copy.deepcopy(self.detector).eval()
            follow_(self.average, self.detector)

    @property
    def backbone(self) -> Backbone:
        """The encoder with its pyramid, of the weights that learn."""
        found: Backbone = self.detector.net.backbone
        return found

    @property
    def scored(self) -> Detector:
        """The detector with the weights that are scored and exported."""
        return self.detector if self.average is None else self.average

    def forward(self, batch: Batch, progress: Progress) -> Output:
        images, _ = batch.views[0].flat()
        if batch.boxes is None:  # a batch without values, of the plan
            return Output(self.detector.dense(images), {})
        if self.training:  # layers that are still frozen run in evaluation mode: no BatchNorm updates, no dropout
            for module, start in self.waiting:
                module.train(progress.epoch >= start)
        draws = [Draw(progress.step, number) for number in batch.index.tolist()]
        losses = self.detector.losses(images, batch.boxes.each(), draws)
        total = torch.stack(list(losses.values())).sum()
        return Output(total, {f"loss_{name.removeprefix('loss_')}": loss.detach() for name, loss in losses.items()})

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

    def train(self, mode: bool = True) -> Detection:
        """Set the mode; a frozen backbone and averaged weights stay in evaluation mode."""
        super().train(mode)
        if self.strategy.frozen:
            self.backbone.encoder.eval()
        if self.average is not None:
            self.average.eval()
        return self

    def after_step(self, progress: Progress, broken: Tensor | None = None) -> None:
        if self.average is not None and self.config.ema is not None:
            ema_(self.average, self.detector, self.config.ema, broken)
            for own, source in zip(self.average.buffers(), self.detector.buffers(), strict=True):
                own.copy_(source)

    def batch_statistics(self) -> tuple[str, ...]:
        """By batch normalisation of a backbone that is not frozen."""
        there = normalises(self.backbone.encoder) and not self.strategy.frozen
        return (f"batch normalisation of {self.architecture}",) if there else ()

    def decays(self, name: str, parameter: nn.Parameter) -> bool:
        return parameter.ndim > 1 and not name.endswith((".bias", *self.backbone.encoder.undecayed))

    def lr_scale(self, name: str) -> float:
        layer = self.layers.get(name.removeprefix(VIT))
        return 1.0 if layer is None else self.strategy.rate(self.depth - layer)

    def inactive(self, progress: Progress) -> Iterable[nn.Parameter]:
        if self.waiting:
            for name, parameter in self.backbone.encoder.vit.named_parameters():
                if progress.epoch < self.strategy.starts(self.depth - self.layers[name]):
                    yield parameter

    def export(self, folder: Path, prepared: Preprocessing, made: Made) -> bool:
        encoder, whole = self.scored.net.backbone.encoder, dict(self.scored.state_dict())
        weights = self.strategy.merged(encoder.vit), whole
        write_detector(folder, encoder, weights, self.config.detector, prepared, made)
        return True

    def loaded_by(self, folder: str, whole: bool) -> str:
        return f"  detector   {folder}  (unlabeled.load_detector({folder!r}))"

    def _waiting(self) -> Iterator[tuple[nn.Module, float]]:
        """Modules with parameters of their own that are frozen at first, and the epochs in which they are unfrozen."""
        for prefix, module in self.backbone.encoder.vit.named_modules():
            own = [f"{prefix}.{name}" for name, _ in module.named_parameters(recurse=False)]
            if own and prefix and (start := self.strategy.starts(self.depth - self.layers[own[0]])) > 0:
                yield module, start
