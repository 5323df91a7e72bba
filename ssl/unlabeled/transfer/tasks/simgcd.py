"""Category discovery with training: SimGCD (Wen, Zhao and Qi 2023) on a pretrained backbone.

Some classes are known and have labels for some of their images. All other images have none, and belong to known classes
or to new ones. One classifier learns both.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from pydantic import Field, field_validator, model_validator
from torch import Tensor, nn

from unlabeled.backbone.encoder import Encoder
from unlabeled.backbone.folder import Preprocessing, timm_config, write_export
from unlabeled.data.batch.batch import Batch
from unlabeled.data.batch.groups import parted
from unlabeled.data.batch.loader import ViewDataset
from unlabeled.data.opened import Opened
from unlabeled.data.source import Source
from unlabeled.data.view.views import View
from unlabeled.errors import UserError
from unlabeled.nn.curves import Temperature
from unlabeled.nn.loss.exact import exact, wide
from unlabeled.pretrain.method import Output, Progress, Symptom
from unlabeled.report.card import Made, classifier_card
from unlabeled.train.engine import Engine
from unlabeled.train.optimizer import Optim
from unlabeled.train.watch import Watching
from unlabeled.transfer.label_task import as_evaluated
from unlabeled.transfer.labels import Amount, Labelled
from unlabeled.transfer.network import ClassifierPool, Trained, head_prefixes
from unlabeled.transfer.predict import Predict
from unlabeled.transfer.simgcd import images as discovery
from unlabeled.transfer.simgcd import result as files
from unlabeled.transfer.simgcd.loss import Head, Losses
from unlabeled.transfer.simgcd.report import GROUPS, MOST
from unlabeled.transfer.simgcd.score import Scorer, names_of
from unlabeled.transfer.strategies import last
from unlabeled.transfer.strategy import STRATEGIES, Strategy
from unlabeled.transfer.task import Choice, Samples, Task, TaskConfig
from unlabeled.transfer.tasks import classify
from unlabeled.transfer.unlabelled import Pictures

WIDTH = 8  # of a probe for the features that a strategy would normalise
ONE_CLUSTER, NO_SPREAD = 95.0, 0.1  # percent; nats
Temperatures = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class Config(TaskConfig, frozen=True, extra="forbid"):
    """Sort unlabelled pictures into known classes and new ones (SimGCD): one classifier for both learns from labelled
    pictures of the known ones, and from what it says of two crops of every picture."""

    headline: ClassVar[str] = "all"
    written: ClassVar[tuple[str, ...]] = ("result.json", "result.md", "clusters.csv")

    name: Literal["simgcd"] = "simgcd"
    strategy: Annotated[Strategy, STRATEGIES] = Field(last.Config(), description="which parts learn, how fast and when")
    pool: ClassifierPool = Field(
        "cls",
        validate_default=True,
        description="class token, mean of the patches (CNN), or half the sum of their mean and maximum; unless set, as "
        "the encoder is evaluated",
    )
    crop_pct: float = Field(
        0.875, gt=0, le=1, description="centre share of the resized image used in evaluation; unless set, the encoder's"
    )
    known: int | None = Field(
        None, ge=1, description="how many classes of data.train are known, the first ones; null = all of them"
    )
    unlabelled: Pictures = Field(
        None,
        description="pictures without labels: a section like `data`, or only a folder or tar; class folders in it are "
        "only scored. null = all of data.train that is not labelled by `known` and `fraction`",
    )
    classes: int | None = Field(
        None, ge=2, description="clusters, known classes and new ones; null = the classes of data.train"
    )
    ratio: int = Field(1, ge=1, description="unlabelled pictures for each labelled one of a batch")
    supervised_weight: float = Field(0.35, ge=0, le=1, description="of the terms with labels; the others have the rest")
    memax_weight: float = Field(
        2.0, ge=0, allow_inf_nan=False, description="of the evenness of clusters: more against one that swallows others"
    )
    student_temperature: Temperatures = Field(0.1, description="of what the classifier says")
    teacher_temperature: Temperatures = Field(0.04, description="of what one crop teaches the other: sharper")
    teacher_temperature_start: Temperatures = Field(0.07, description="where that begins")
    teacher_temperature_epochs: float = Field(30.0, ge=0, allow_inf_nan=False, description="epochs until it is reached")
    contrast_temperature: Temperatures = Field(1.0, description="of the contrast between all pictures")
    supervised_contrast_temperature: Temperatures = Field(0.07, description="of the contrast between classes")
    hidden: int = Field(2048, ge=1, description="width of the MLP for contrast")
    bottleneck: int = Field(256, ge=1, description="width of its output")

    @field_validator("strategy")
    @classmethod
    def _for_a_backbone(cls, strategy: Strategy) -> Strategy:
        if strategy.from_classifier or strategy.own_pooling or strategy.head_norm(WIDTH) is not None:
            raise ValueError(
                f"strategy {strategy.name} is for classifiers: expected last, frozen, full, differential, gradual or "
                "lora"
            )
        return strategy

    @field_validator("view")
    @classmethod
    def _one_crop_is_doubled(cls, view: View) -> View:
        if view.count != 1:
            raise ValueError(f"simgcd cuts two crops by itself, found count {view.count}: leave it out")
        return view

    @model_validator(mode="after")
    def _new_classes(self) -> Config:
        if self.unlabelled is not None and self.classes is None:
            raise ValueError(
                "nobody knows how many classes the unlabelled pictures have: set task.classes to known and new ones "
                "together (`unlabeled discover` estimates it)"
            )
        if self.known is not None and self.classes is not None and self.classes < self.known:
            raise ValueError(f"classes {self.classes} are fewer than the {self.known} known ones: raise task.classes")
        return self

    @property
    def crops(self) -> list[View]:
        return [self.view.model_copy(update={"count": 2})]

    @property
    def way(self) -> str:
        return f"{self.name}, {self.strategy.name}"

    @property
    def evaluated_crop(self) -> float:
        return self.crop_pct

    @property
    def losses(self) -> Losses:
        """Weights and temperatures of the loss."""
        temperatures = (self.student_temperature, self.contrast_temperature, self.supervised_contrast_temperature)
        return Losses(self.supervised_weight, self.memax_weight, *temperatures)

    def left_to_the_encoder(self, how: Preprocessing) -> dict[str, Any]:
        return as_evaluated(self.view, self.own_pooling, how)

    def images(self, data: Opened, watch: Watching | None) -> Labelled:
        return discovery.labelled(data, self.known, self.unlabelled, Amount(self.fraction, seed=self.fraction_seed))

    def samples(self, images: Labelled, data: Opened, how: Samples) -> ViewDataset:
        others = images.test if self.unlabelled is None else discovery.unlabelled(data, self.unlabelled)
        source, groups = discovery.joined(images.train, others, self.ratio)
        return ViewDataset(source, self.crops, how.patch, how.seed, base=how.base, uncut=how.uncut, groups=groups)

    def begin(self, encoder: Encoder, source: Source, trained: Trained | None, seed: int) -> Task:
        known = self.known or len(source.classes)
        classes = self.classes or len(source.classes)
        if classes <= known:
            raise UserError(
                f"task.classes is {classes}, and {known} classes are known: there is nothing to discover. Set "
                f"task.classes to {known + 1} or more."
            )
        return SimGcd(encoder, self, known, classes)

    def scorer(self, predict: Predict, source: Source, train: Source, choice: Choice | None = None) -> Scorer:
        return Scorer(predict, source, self.known or len(train.classes))

    def write_result(self, output: Path, told: dict[str, Any], engine: Engine, scorer: Scorer) -> None:
        files.write_result(output, told, engine, scorer)

    def write_looks(self, folder: Path, scorer: Scorer, method: Any, look: Any) -> str:
        return ""  # errors are those of clusters: they are a table

    def check(self, watch: Watching | None, optim: Optim) -> None:
        if watch is not None:
            raise ValueError(
                "simgcd is scored on pictures whose classes nobody should know: weights chosen by that score say "
                "nothing. Set watch=null"
            )

    def logged(self, result: dict[str, Any]) -> dict[str, float]:
        return {name: result[name] for name in (*GROUPS, MOST) if result[name] is not None}

    def describe(self) -> str:
        clusters = "clusters" if self.classes is None else f"{self.classes} clusters"
        known = "all classes" if self.known is None else f"the first {self.known} classes"
        return (
            f"{clusters}, {known} known by {100 * self.fraction:g} % of their labels, 1 : {self.ratio} with unlabelled "
            f"pictures, memax {self.memax_weight:g}, strategy {self.strategy.name}, pool {self.pool}"
        )

    def chosen(self) -> dict[str, str]:
        return {} if self.unlabelled is None else super().chosen()  # what is not labelled then is learnt from as well

    def unfreezing(self, method: Any, epochs: float) -> str:
        return self.strategy.plan(max(method.classifier.layers.values()), epochs)


class SimGcd(Task):
    """A backbone with SimGCD's head.

    Args:
        encoder: at the size of the images.
        config: of the task.
        known: classes with labels, numbered first.
        classes: clusters, K.
    """

    def __init__(self, encoder: Encoder, config: Config, known: int, classes: int) -> None:
        super().__init__()
        self.config, self.losses, self.known, self.classes = config, config.losses, known, classes
        self.architecture, self.family = encoder.model, type(encoder)
        parts = classify.Config(strategy=config.strategy, pool=config.pool, view=config.view)
        self.classifier = classify.Classifier(encoder, parts, [1])
        for head in self.classifier.heads:  # prototypes are in its place
            head.requires_grad_(False)
        self.head = Head(self.classifier.head.in_features, classes, config.hidden, config.bottleneck)
        start, end = config.teacher_temperature_start, config.teacher_temperature
        self.teacher = Temperature(start, end, config.teacher_temperature_epochs)

    def forward(self, batch: Batch, progress: Progress) -> Output:
        self.classifier.wake(progress)
        pixels = batch.views[0].pixels
        features = self.features(pixels.flatten(0, 1))
        with exact(features):
            logits, projected = (x.unflatten(0, (2, -1)) for x in self.head(wide(features)))
        rows = parted(torch.arange(pixels.shape[1], device=pixels.device), (1, self.config.ratio))[0]
        labels, teacher = batch.labels[rows], self.teacher.at(progress.epoch, progress.total_steps / progress.epochs)
        terms = self.losses.terms(logits, projected, rows, labels, teacher)
        right = (logits.detach()[:, rows].argmax(-1) == labels).float().mean()
        metrics = {**{name: term.detach() for name, term in terms.items()}, "train_accuracy": 100 * right}
        found = {**metrics, **self.losses.measures(logits.detach())}
        return Output(self.losses.total(terms), found, features.detach()[: pixels.shape[1]])

    def features(self, images: Tensor) -> Tensor:
        """Pooled features [B, D] of images [B, C, H, W]."""
        model = self.classifier.model
        found: Tensor = model.forward_head(model.forward_features(images), pre_logits=True)
        return found

    def predict(self, images: Tensor) -> Tensor:
        """Scores [B, K] of images [B, C, H, W]: logits of known classes, then of new ones."""
        features = self.features(images)
        with exact(features):
            return self.head.logits(wide(features)) / self.losses.student

    def timed(self, images: Tensor) -> Tensor:
        return self.predict(images)

    def batch_statistics(self) -> tuple[str, ...]:
        return "negatives of the batch", "the mean prediction", *super().batch_statistics()

    def symptoms(self) -> list[Symptom]:
        weight = self.config.memax_weight
        advice = f"Raise task.memax_weight from {weight:g} to {max(1.0, 2 * weight):g}."
        return [
            Symptom(MOST, "one cluster swallows nearly all pictures", advice, at_least=ONE_CLUSTER),
            Symptom("cluster_entropy", "the mean prediction is one cluster: a collapse", advice, at_most=NO_SPREAD),
        ]

    def decays(self, name: str, parameter: nn.Parameter) -> bool:
        return self.classifier.decays(name, parameter)

    def lr_scale(self, name: str) -> float:
        inside = name.removeprefix("classifier.")
        return 1.0 if inside == name else self.classifier.lr_scale(inside)

    def inactive(self, progress: Progress) -> Iterable[nn.Parameter]:
        return self.classifier.inactive(progress)

    @torch.no_grad()
    def exported(self) -> dict[str, Tensor]:
        """The state of a plain timm classifier: unit prototypes are its head. Its scores are cosines times the length
        of the features, so that each image has the same order of classes."""
        state = self.classifier.exported()
        for prefix in head_prefixes(self.classifier.model):
            state[f"{prefix}weight"] = F.normalize(self.head.last_layer.weight_v, dim=-1)
            state[f"{prefix}bias"] = state[f"{prefix}bias"].new_zeros(self.classes)
        return state

    def export(self, folder: Path, prepared: Preprocessing, made: Made) -> bool:
        names, inner = names_of(made.classes[: self.known], self.classes), self.classifier
        width = inner.model.num_features
        config = timm_config(self.architecture, inner.arguments, width, prepared, len(names), names)
        loading = self.family.loading(self.architecture, inner.arguments, headed=True)
        write_export(folder, self.exported(), config, classifier_card(made._replace(classes=names), loading))
        return True

    def loaded_by(self, folder: str, whole: bool) -> str:
        return f"  classifier {folder}  ({self.family.loaded_by(self.architecture, folder)})"
