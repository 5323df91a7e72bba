"""The contract of tasks: what is learnt from labelled images. Kinds are the files of `tasks/`."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol

import torch
from pydantic import BaseModel, Field, field_validator
from pydantic_core.core_schema import ValidationInfo
from torch import Tensor, nn

from unlabeled.backbone.encoder import Encoder
from unlabeled.backbone.folder import Preprocessing
from unlabeled.data.source import Source
from unlabeled.data.view.mixing import Mixing
from unlabeled.data.view.views import Interpolation, View
from unlabeled.nn.positions import Grid
from unlabeled.pretrain.method import Method
from unlabeled.registry import ByFile
from unlabeled.report.card import Made
from unlabeled.train.optimizer import Optim
from unlabeled.train.watch import Watching
from unlabeled.transfer.network import Trained
from unlabeled.transfer.predict import Predict
from unlabeled.transfer.unlabelled import Unlabelled


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


class Task(Method):
    """A method that learns from labels: it predicts, and it is exported as it predicts."""

    architecture: str  # the model of its backbone
    family: type[Encoder]  # of that model

    @property
    @abstractmethod
    def network(self) -> Any:
        """The timm model by which it predicts, with the weights that are scored."""

    @abstractmethod
    def predict(self, images: Tensor) -> Tensor:
        """Class scores [B, classes] of images [B, C, H, W], by the weights that are scored and exported."""

    @abstractmethod
    def traced(self, images: Tensor) -> Traced:
        """The scores of `predict` with gradients, for images [B, C, H, W]."""

    @abstractmethod
    def export(self, folder: Path, prepared: Preprocessing, made: Made) -> bool:
        """Write a folder that timm reads, in the place of an earlier one, with a card of how it was `made`.

        Returns whether it holds a classifier, and not a backbone and a head. Raises UserError when it cannot be
        written; an earlier one stays as it was.
        """


class Choice(Protocol):
    """The choice between the parts of a task that could predict, which is made before each score."""

    def __call__(self, method: Any) -> dict[str, float]:
        """The score of the best one, by its name. All processes must call it, and choose the same."""

    def summary(self, method: Any) -> dict[str, Any]:
        """The parts that were tried, the chosen one and the images that decided, as JSON."""


class TaskConfig(BaseModel, ABC, frozen=True, extra="forbid"):
    """The fields of all tasks: images, labels, loss. `name` is the name of its file.

    Attributes:
        from_classifier: whether it starts from a classifier instead of an encoder.
        own_pooling: whether it pools by itself, whatever its encoder is evaluated with.
        way: its name on cards: that of its strategy, where it has one.
    """

    name: str
    view: View = Field(
        View(size=224, scale=(0.08, 1.0)),
        description="the crop trained on; its size, unless set the encoder's, is evaluated too",
    )
    crop_pct: float = Field(
        0.875, gt=0, le=1, description="centre share of the resized image used in evaluation; unless set, the encoder's"
    )
    interpolation: Interpolation | None = Field(
        None,
        description="how images are resized in evaluation; null = as the view's, or the encoder's where it has none",
    )
    label_smoothing: float = Field(0.0, ge=0, lt=1, description="share of the target spread over all classes")
    mixing: Mixing = Field(Mixing(), description="mixup and CutMix of neighbours in the batch; null = neither")
    repeats: int = Field(
        1, ge=1, description="crops of each image in a batch, of so many times fewer images (repeated augmentation)"
    )
    head_std: float = Field(0.02, gt=0, description="standard deviation of the head's initial weights")
    head_scale: float = Field(
        1.0, gt=0, le=1, description="factor on them after they are drawn (0.001 in SimMIM's and iBOT's fine-tuning)"
    )
    balance: Literal["none", "sqrt", "balanced"] = Field(
        "none", description="how often a class is drawn: as it occurs, by the root of its count, or all alike"
    )
    balance_from: float = Field(0.0, ge=0, allow_inf_nan=False, description="epoch from which it is balanced")
    effective_number: float | None = Field(
        None, ge=0, lt=1, description="beta of the classes' weights in the loss, such as 0.9999; null = all alike"
    )
    logit_adjustment: float = Field(
        0.0, ge=0, allow_inf_nan=False, description="log frequencies times this are added to the logits in training"
    )
    fraction: float = Field(1.0, gt=0, le=1, description="share of the labels to use, stratified and seeded")
    shots: int | None = Field(None, ge=1, description="labelled images to use of every class; null = all")
    long_tail: float | None = Field(
        None, ge=1, allow_inf_nan=False, description="make the classes unbalanced, the last so many times rarer"
    )
    fraction_seed: int = Field(0, ge=0, description="seed of the choice of labels")

    @field_validator("view")
    @classmethod
    def _one_size(cls, view: View) -> View:
        if view.sizes:
            raise ValueError(f"sizes are for pretraining: expected size alone, found {len(view.sizes)} sizes")
        return view

    @field_validator("mixing", mode="before")
    @classmethod
    def _none_is_off(cls, mixing: Any) -> Any:
        return Mixing() if mixing is None else mixing

    @field_validator("shots")
    @classmethod
    def _shots_or_a_share(cls, shots: int | None, info: ValidationInfo) -> int | None:
        if shots is not None and info.data.get("fraction", 1.0) < 1:
            raise ValueError(f"expected shots or a fraction, found both ({shots}, {info.data['fraction']:g})")
        return shots

    @property
    def without_labels(self) -> Unlabelled | None:
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

    @abstractmethod
    def build(self, encoder: Encoder, counts: Sequence[int], trained: Trained | None = None) -> Task:
        """The task with new heads for classes with `counts` training images, on an encoder or a trained classifier.

        Raises UserError when the encoder does not have what the task reads.
        """

    def check(self, watch: Watching | None, optim: Optim) -> None:
        """Raise ValueError when the task cannot be watched or optimised so."""

    def choice(self, predict: Predict, source: Source | None, watch: Watching | None) -> Choice | None:
        """The choice that the task leaves open, to be made on a source; None = it leaves none."""
        return None

    @abstractmethod
    def describe(self) -> str:
        """The parts that learn and the features that they read, for the plan."""

    def unfreezing(self, method: Any, epochs: float) -> str:
        """When layers of the built method begin to learn, for the plan; empty = all from the start."""
        return ""

    def initialize_(self, head: nn.Module) -> None:
        """Give the linear layers of a new head small normal weights and no bias."""
        with torch.no_grad():
            for layer in (one for one in head.modules() if isinstance(one, nn.Linear)):
                nn.init.trunc_normal_(layer.weight, std=self.head_std).mul_(self.head_scale)
                if layer.bias is not None:
                    nn.init.zeros_(layer.bias)


TASKS = ByFile("unlabeled.transfer.tasks", TaskConfig, default="classify")
