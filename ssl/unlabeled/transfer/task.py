"""The contract of tasks: what is learnt from labelled images. Kinds are the files of `tasks/`."""

from __future__ import annotations

from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, Protocol

from pydantic import BaseModel, Field, field_validator
from torch import Tensor

from unlabeled.backbone.encoder import Encoder
from unlabeled.backbone.folder import Preprocessing
from unlabeled.data.batch.groups import Groups
from unlabeled.data.batch.loader import ViewDataset
from unlabeled.data.opened import Opened
from unlabeled.data.order import EpochOrder
from unlabeled.data.source import Source
from unlabeled.data.view.views import Interpolation, View
from unlabeled.nn.positions import Grid
from unlabeled.pretrain.method import Method
from unlabeled.progress import Clock
from unlabeled.registry import ByFile
from unlabeled.report.card import Made
from unlabeled.train.engine import Engine
from unlabeled.train.optimizer import Optim
from unlabeled.train.watch import Watching
from unlabeled.transfer.labels import Labelled
from unlabeled.transfer.network import Trained
from unlabeled.transfer.predict import Predict
from unlabeled.transfer.unlabelled import WithoutLabels


class Task(Method):
    """A method that learns from labels: it predicts, and it is exported as it predicts."""

    architecture: str  # the model of its backbone
    family: type[Encoder]  # of that model

    @abstractmethod
    def predict(self, images: Tensor) -> Any:
        """What it says of images [B, C, H, W], by the weights that are scored and exported."""

    @abstractmethod
    def timed(self, images: Tensor) -> Tensor:
        """As `predict`, what the network alone computes, whose time is measured."""

    @abstractmethod
    def export(self, folder: Path, prepared: Preprocessing, made: Made) -> bool:
        """Write a folder that timm reads, in the place of an earlier one, with a card of how it was `made`.

        Returns whether it holds all that predicts, and not a backbone and a head. Raises UserError when it cannot be
        written; an earlier one stays as it was.
        """

    @abstractmethod
    def loaded_by(self, folder: str, whole: bool) -> str:
        """A line on an export: what it is, where, and how it is loaded; `whole` is what `export` returned."""


class Traced(NamedTuple):
    """Class scores with gradients, and what they were made from.

    Attributes:
        scores: [B, classes].
        last: the last map or tokens of the network, with class token and registers.
        grid: (rows, columns) of its patches.
    """

    scores: Tensor
    last: Tensor
    grid: Grid


class ImageTask(Task):
    """A task that tells the class of an image."""

    @property
    @abstractmethod
    def network(self) -> Any:
        """The timm model by which it predicts, with the weights that are scored."""

    @abstractmethod
    def predict(self, images: Tensor) -> Tensor:
        """Class scores [B, classes] of images [B, C, H, W], by the weights that are scored and exported."""

    def timed(self, images: Tensor) -> Tensor:
        return self.predict(images)

    @abstractmethod
    def traced(self, images: Tensor) -> Traced:
        """The scores of `predict` with gradients, for images [B, C, H, W]."""

    def loaded_by(self, folder: str, whole: bool) -> str:
        load = self.family.loaded_by(self.architecture, folder)
        if whole:
            return f"  classifier {folder}  ({load})"
        return f"  backbone   {folder}  ({load}), the linear head is in heads.safetensors"


class Choice(Protocol):
    """The choice between the parts of a task that could predict, which is made before each score."""

    def __call__(self, method: Any) -> dict[str, float]:
        """The score of the best one, by its name. All processes must call it, and choose the same."""

    def summary(self, method: Any) -> dict[str, Any]:
        """The parts that were tried, the chosen one and the images that decided, as JSON."""


class Scorer(Protocol):
    """Scores a task on the images of `source`.

    Attributes:
        source: the images.
        choice: made before each score; None = there is nothing to choose.
        latest: the newest result as JSON; None = none yet.
        clock: of the process that scores.
    """

    source: Source
    choice: Choice | None
    latest: dict[str, Any] | None
    clock: Clock

    def __call__(self, method: Any) -> dict[str, Any]:
        """The scores of a task as JSON, in percent. All processes must call it."""


class Samples(NamedTuple):
    """How samples are made of a source, whatever the task."""

    patch: int  # side of a patch, pixels
    seed: int
    base: EpochOrder  # the order of images that come once each
    uncut: bool  # whether crops are cut on the device
    groups: Groups | None = None  # that make up each batch; None = there are none


class TaskConfig(BaseModel, ABC, frozen=True, extra="forbid"):
    """The fields of all tasks. `name` is the name of its file.

    Attributes:
        from_classifier: whether it starts from a classifier instead of an encoder.
        own_pooling: whether it pools by itself, whatever its encoder is evaluated with.
        way: its name on cards: that of its strategy, where it has one.
        headline: the score of its results that stands for all.
        written: the files of a result.
        labels: whether every image has a class, which folders or tables name.
    """

    headline: ClassVar[str]
    written: ClassVar[tuple[str, ...]]
    labels: ClassVar[bool] = True

    name: str
    view: View = Field(
        View(size=224, scale=(0.08, 1.0)),
        description="the crop trained on; its size, unless set the encoder's, is evaluated too",
    )
    interpolation: Interpolation | None = Field(
        None,
        description="how images are resized in evaluation; null = as the view's, or the encoder's where it has none",
    )
    fraction: float = Field(1.0, gt=0, le=1, description="share of the labels to use, stratified and seeded")
    fraction_seed: int = Field(0, ge=0, description="seed of the choice of labels")

    @field_validator("view")
    @classmethod
    def _one_size(cls, view: View) -> View:
        if view.sizes:
            raise ValueError(f"sizes are for pretraining: expected size alone, found {len(view.sizes)} sizes")
        return view

    @property
    def without_labels(self) -> WithoutLabels | None:
        """How it learns from images without labels; None = it does not."""
        return None

    @property
    def crops(self) -> list[View]:
        """The views of a batch."""
        return [self.view] if self.without_labels is None else self.without_labels.views(self.view)

    @property
    def evaluated_with(self) -> Interpolation:
        """How images are resized in evaluation."""
        return self.interpolation or self.view.interpolation

    @property
    def from_classifier(self) -> bool:
        return False

    @property
    def own_pooling(self) -> bool:
        return False

    @property
    def way(self) -> str:
        return self.name

    @property
    def evaluated_crop(self) -> float:
        """Centre share of the resized image used in evaluation."""
        return 1.0

    def left_to_the_encoder(self, how: Preprocessing) -> dict[str, Any]:
        """Its fields that a recipe may leave to its encoder, by path, with the values of `how`."""
        return {}

    @abstractmethod
    def images(self, data: Opened, watch: Watching | None) -> Labelled:
        """The images of a `data:` section to learn from, to watch and to score. Raises UserError when they do not suit
        it."""

    @abstractmethod
    def samples(self, images: Labelled, data: Opened, how: Samples) -> ViewDataset:
        """Training samples of the images to learn from, of the `data` section. Raises UserError when they cannot be
        made so."""

    @abstractmethod
    def begin(self, encoder: Encoder, source: Source, trained: Trained | None, seed: int) -> Task:
        """The task with new heads for the classes of a source, on an encoder or a trained classifier.

        Raises UserError when the encoder does not have what the task reads.
        """

    @abstractmethod
    def scorer(self, predict: Predict, source: Source, train: Source, choice: Choice | None = None) -> Scorer:
        """Scores of the task on a source; `train` are the images that were learnt from. Raises UserError when they do
        not suit each other."""

    @abstractmethod
    def write_result(self, output: Path, told: dict[str, Any], engine: Engine, scorer: Any) -> None:
        """Write the files of a result; `told` is the recipe as JSON. Raises OSError."""

    @abstractmethod
    def write_looks(self, folder: Path, scorer: Any, method: Any, look: Any) -> str:
        """Write pictures for the page, of the scorer's newest result; returns a line where that fails, else ""."""

    def check(self, watch: Watching | None, optim: Optim) -> None:
        """Raise ValueError when the task cannot be watched or optimised so."""

    def check_batch(self, micro: int) -> None:
        """Raise UserError when it cannot learn from so many images at a time."""

    def choice(self, predict: Predict, source: Source | None, watch: Watching | None) -> Choice | None:
        """The choice that the task leaves open, to be made on a source; None = it leaves none."""
        return None

    def logged(self, result: dict[str, Any]) -> dict[str, float]:
        """The scores of a result that are logged, by name."""
        return {self.headline: result[self.headline]}

    @abstractmethod
    def describe(self) -> str:
        """The parts that learn and the features that they read, for the plan."""

    def chosen(self) -> dict[str, str]:
        """What of the images is learnt from, and how often, for the plan."""
        return {"share": f"{100 * self.fraction:g} % of the labels"} if self.fraction < 1 else {}

    def unfreezing(self, method: Any, epochs: float) -> str:
        """When layers of the built method begin to learn, for the plan; empty = all from the start."""
        return ""


TASKS = ByFile("unlabeled.transfer.tasks", TaskConfig, default="classify")
