"""The fields of tasks that learn one class of every image, and what they make of images and scores."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from pydantic import Field, field_validator
from pydantic_core.core_schema import ValidationInfo
from torch import nn

from unlabeled.backbone.encoder import Encoder
from unlabeled.backbone.folder import Preprocessing
from unlabeled.data.batch.loader import ViewDataset
from unlabeled.data.batch.sampler import Order
from unlabeled.data.opened import Opened
from unlabeled.data.source import Source
from unlabeled.data.view.mixing import Mixing
from unlabeled.data.view.views import View
from unlabeled.train.engine import Engine
from unlabeled.train.optimizer import Optim
from unlabeled.train.watch import Watching
from unlabeled.transfer.labels import Amount, Labelled, labelled, with_unlabelled
from unlabeled.transfer.looks import Look, write_looks
from unlabeled.transfer.network import Trained
from unlabeled.transfer.predict import Predict
from unlabeled.transfer.result import Scorer, write_result
from unlabeled.transfer.task import Choice, ImageTask, Samples, TaskConfig
from unlabeled.transfer.unlabelled import FIELD


class LabelTask(TaskConfig, ABC, frozen=True, extra="forbid"):
    """The fields of tasks that learn the class of an image: labels and loss."""

    headline: ClassVar[str] = "accuracy"
    written: ClassVar[tuple[str, ...]] = (
        "result.json",
        "result.md",
        "errors.csv",
        "confusion.png",
        "reliability.png",
    )

    crop_pct: float = Field(
        0.875, gt=0, le=1, description="centre share of the resized image used in evaluation; unless set, the encoder's"
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
    shots: int | None = Field(None, ge=1, description="labelled images to use of every class; null = all")
    long_tail: float | None = Field(
        None, ge=1, allow_inf_nan=False, description="make the classes unbalanced, the last so many times rarer"
    )

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
    def evaluated_crop(self) -> float:
        return self.crop_pct

    def left_to_the_encoder(self, how: Preprocessing) -> dict[str, Any]:
        return as_evaluated(self.view, self.own_pooling, how)

    def images(self, data: Opened, watch: Watching | None) -> Labelled:
        hold_out = None if watch is None else watch.hold_out
        return labelled(data, Amount(self.fraction, self.shots, self.long_tail, self.fraction_seed, hold_out))

    def samples(self, images: Labelled, data: Opened, how: Samples) -> ViewDataset:
        source, groups, without = images.train, how.groups, self.without_labels
        if without is not None:
            other, views = without.seeing(data.config), len(self.crops)
            source, groups = with_unlabelled(data, images, other, FIELD, without.shares, views)
        order = Order(images.train.labels, self.balance, self.balance_from, self.repeats)
        drawn = (how.patch, how.seed, self.mixing, order, how.base, how.uncut, groups)
        return ViewDataset(source, self.crops, *drawn)

    def begin(self, encoder: Encoder, source: Source, trained: Trained | None, seed: int) -> ImageTask:
        return self.build(encoder, np.bincount(source.labels, minlength=len(source.classes)).tolist(), trained)

    @abstractmethod
    def build(self, encoder: Encoder, counts: Sequence[int], trained: Trained | None = None) -> ImageTask:
        """The task with new heads for classes with `counts` training images, on an encoder or a trained classifier.

        Raises UserError when the encoder does not have what the task reads.
        """

    def scorer(self, predict: Predict, source: Source, train: Source, choice: Choice | None = None) -> Scorer:
        return Scorer(predict, source, train.labels, choice)

    def write_result(self, output: Path, told: dict[str, Any], engine: Engine, scorer: Scorer) -> None:
        write_result(output, told, engine, scorer)

    def write_looks(self, folder: Path, scorer: Scorer, method: ImageTask, look: Look) -> str:
        return write_looks(folder, scorer, method, look)

    def check(self, watch: Watching | None, optim: Optim) -> None:
        if watch is not None and watch.metric in ("map", "miou"):
            raise ValueError(f"{self.name} has no {watch.metric} to watch: set watch.metric=accuracy")

    def check_batch(self, micro: int) -> None:
        self.mixing.check(micro)

    def chosen(self) -> dict[str, str]:
        found = {
            "long tail": self.long_tail and f"{self.long_tail:g} : 1",
            **super().chosen(),
            "shots": self.shots and f"{self.shots} a class",
            "repeated": self.repeats > 1 and f"{self.repeats} times in a batch",
            "drawn": self.balance != "none" and f"{self.balance} from epoch {self.balance_from:g}",
        }
        return {name: text for name, text in found.items() if text}

    def initialize_(self, head: nn.Module) -> None:
        """Give the linear layers of a new head small normal weights and no bias."""
        with torch.no_grad():
            for layer in (one for one in head.modules() if isinstance(one, nn.Linear)):
                nn.init.trunc_normal_(layer.weight, std=self.head_std).mul_(self.head_scale)
                if layer.bias is not None:
                    nn.init.zeros_(layer.bias)


def as_evaluated(view: View, own_pooling: bool, how: Preprocessing) -> dict[str, Any]:
    """The crop, size, interpolation and pooling with which an encoder is evaluated, by path in a recipe, for a task of
    this `view` that may pool by itself."""
    wanted: dict[str, Any] = {"task.crop_pct": how.crop_pct}
    if how.size is not None:
        wanted["task.view.size"] = list(how.size)
    if "interpolation" not in view.model_fields_set:
        wanted["task.interpolation"] = how.interpolation
    if how.pool not in (None, "cls_mean") and not own_pooling:  # no classifier reads both kinds of tokens
        wanted["task.pool"] = how.pool
    return wanted
