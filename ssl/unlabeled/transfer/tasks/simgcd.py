"""Category discovery with training: SimGCD (Wen, Zhao and Qi 2023) on a pretrained backbone.

Some classes are known and have labels for some of their images. All other images have none, and belong to known classes
or to new ones. One classifier learns both.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, field_validator, model_validator

from unlabeled.backbone.encoder import Encoder
from unlabeled.backbone.folder import Preprocessing
from unlabeled.data.batch.loader import ViewDataset
from unlabeled.data.opened import Opened
from unlabeled.data.source import Source
from unlabeled.data.view.mixing import Mixing
from unlabeled.data.view.views import View
from unlabeled.errors import UserError
from unlabeled.nn.curves import Temperature
from unlabeled.train.engine import Engine
from unlabeled.train.optimizer import Optim
from unlabeled.train.watch import Watching
from unlabeled.transfer.label_task import as_evaluated
from unlabeled.transfer.labels import Amount, Labelled
from unlabeled.transfer.network import ClassifierPool, Trained
from unlabeled.transfer.predict import Predict
from unlabeled.transfer.simgcd import images as discovery
from unlabeled.transfer.simgcd import result as files
from unlabeled.transfer.simgcd.loss import Losses
from unlabeled.transfer.simgcd.method import SimGcd
from unlabeled.transfer.simgcd.report import GROUPS, MOST
from unlabeled.transfer.simgcd.score import Scorer
from unlabeled.transfer.strategies import last
from unlabeled.transfer.strategy import STRATEGIES, Strategy
from unlabeled.transfer.task import Choice, Samples, Task, TaskConfig
from unlabeled.transfer.tasks import classify
from unlabeled.transfer.unlabelled import Pictures

WIDTH = 8  # of a probe for the features that a strategy would normalise
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
    mix_unlabelled: Mixing = Field(
        Mixing(),
        description="mixup and CutMix of labelled with unlabelled pictures, by the classes of both; null = none",
    )
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

    @field_validator("mix_unlabelled", mode="before")
    @classmethod
    def _none_is_off(cls, mixing: Any) -> Any:
        return Mixing() if mixing is None else mixing

    @model_validator(mode="after")
    def _neighbours_are_of_both_kinds(self) -> Config:
        if self.mix_unlabelled.on and self.ratio % 2 == 0:
            raise ValueError(
                f"mix_unlabelled mixes a labelled picture with its unlabelled neighbour: expected an odd ratio, found "
                f"{self.ratio}. Set task.ratio={self.ratio - 1}, or task.mix_unlabelled=null"
            )
        return self

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

    @property
    def teacher(self) -> Temperature:
        """The temperature of what one crop teaches the other."""
        return Temperature(self.teacher_temperature_start, self.teacher_temperature, self.teacher_temperature_epochs)

    def left_to_the_encoder(self, how: Preprocessing) -> dict[str, Any]:
        return as_evaluated(self.view, self.own_pooling, how)

    def images(self, data: Opened, watch: Watching | None) -> Labelled:
        return discovery.labelled(data, self.known, self.unlabelled, Amount(self.fraction, seed=self.fraction_seed))

    def samples(self, images: Labelled, data: Opened, how: Samples) -> ViewDataset:
        others = images.test if self.unlabelled is None else discovery.unlabelled(data, self.unlabelled)
        source, groups = discovery.joined(images.train, others, self.ratio)
        drawn = (how.patch, how.seed, self.mix_unlabelled, None, how.base, how.uncut, groups)
        return ViewDataset(source, self.crops, *drawn)

    def begin(self, encoder: Encoder, source: Source, trained: Trained | None, seed: int) -> Task:
        known = self.known or len(source.classes)
        classes = self.classes or len(source.classes)
        if classes <= known:
            raise UserError(
                f"task.classes is {classes}, and {known} classes are known: there is nothing to discover. Set "
                f"task.classes to {known + 1} or more."
            )
        backbone = classify.Config(strategy=self.strategy, pool=self.pool, view=self.view)
        head, teacher = (self.hidden, self.bottleneck), self.teacher
        return SimGcd(encoder, backbone, (known, classes), head, self.losses, teacher, self.ratio)

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

    def check_batch(self, micro: int) -> None:
        self.mix_unlabelled.check(micro, "task.mix_unlabelled")

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
