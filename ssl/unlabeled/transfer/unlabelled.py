"""Semi-supervised classification: the classifier learns from images without labels beside its labelled ones.

What it says of a weak view (crop, flip) is what it is to say of a strong one (RandAugment, erasing) of the same image,
where it is sure enough: FixMatch with a fixed threshold, FreeMatch with adaptive ones, MixMatch's targets with `sharp`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Annotated, Any, NamedTuple

import torch
import torch.nn.functional as F
from pydantic import BaseModel, BeforeValidator, Field, field_validator
from pydantic_core.core_schema import ValidationInfo
from torch import Tensor, nn

from unlabeled.data.batch.batch import Batch, ViewBatch
from unlabeled.data.batch.groups import parted
from unlabeled.data.source import AnyData, SourceConfig
from unlabeled.data.view.augment import must_be_rand_augment
from unlabeled.data.view.twin import GEOMETRY
from unlabeled.data.view.views import Jitter, Probability, View
from unlabeled.nn.collectives import mean_over_processes
from unlabeled.pretrain.method import Symptom
from unlabeled.transfer.target import TARGETS, Target
from unlabeled.transfer.targets import hard
from unlabeled.transfer.threshold import THRESHOLDS, Threshold
from unlabeled.transfer.thresholds import adaptive

FIELD = "task.unlabelled.data"
NONE_PASS, ONE_CLASS = 0.5, 99.0  # percent


def _all_in(value: Any) -> Any:
    """The section that a path alone stands for: all images in a folder or tar."""
    return {"name": "files", "path": value, "stray": "keep"} if isinstance(value, str) else value


Pictures = Annotated[AnyData | None, BeforeValidator(_all_in)]


class Strong(BaseModel, frozen=True, extra="forbid"):
    """What a strong view has beyond the crop and flip of `task.view`."""

    rand_augment: str | None = Field(
        "rand-m10-n3-p1-mstd101-inc1",
        description="RandAugment as timm writes it; mstd101 = a magnitude drawn evenly up to m; null = none",
    )
    jitter: Jitter | None = Field(
        None, description="strength of the jitter of [brightness, contrast, saturation, hue], in its place; null = none"
    )
    erase: Probability = Field(0.5, description="probability of noise in a box of the normalised crop")

    @field_validator("rand_augment")
    @classmethod
    def _timm_knows_it(cls, spec: str | None) -> str | None:
        if spec is not None:
            must_be_rand_augment(spec)
        return spec

    @field_validator("jitter")
    @classmethod
    def _colours_once(cls, jitter: Jitter | None, info: ValidationInfo) -> Jitter | None:
        if jitter is not None and (spec := info.data.get("rand_augment")) is not None:
            raise ValueError(f"found jitter {list(jitter)} beside rand_augment {spec!r}: set rand_augment: null")
        return jitter

    def of(self, weak: View) -> View:
        """The strong view of images whose weak one is given."""
        geometry = {name: getattr(weak, name) for name in ("size", *GEOMETRY)}
        return View(**geometry, **dict(self))


class WithoutLabels(BaseModel, ABC, frozen=True, extra="forbid"):
    """The fields of all tasks' `task.unlabelled` sections: which images, how many in a batch, how much they count."""

    data: Pictures = Field(
        None,
        description="pictures without labels: a section like `data`, or only a folder or tar; labels are not read but "
        "for logging how often pseudo-labels are right. null = all of `data`, labels hidden",
    )
    ratio: int = Field(1, ge=1, description="unlabelled pictures for each labelled one of a batch (7 in the papers)")
    weight: float = Field(1.0, ge=0, allow_inf_nan=False, description="of their loss beside that of the labelled ones")

    @property
    def shares(self) -> tuple[int, int]:
        """Labelled and unlabelled images of each period of a batch."""
        return 1, self.ratio

    @property
    def augmented(self) -> str | None:
        """The RandAugment of their strong view, which workers alone can do; None = it has none."""
        return None

    @abstractmethod
    def views(self, weak: Any) -> list[View]:
        """The views of a batch, the weak one first."""

    @abstractmethod
    def describe(self) -> str:
        """In words for the plan."""

    def seeing(self, data: SourceConfig) -> SourceConfig | None:
        """The images, seen as the labelled ones of `data` are; None where they are of `data` itself.

        Raises ValueError where the section says that they are to be seen otherwise.
        """
        return None if self.data is None else self.data.normalised_as(data, FIELD, written=True)


class Unlabelled(WithoutLabels, frozen=True, extra="forbid"):
    """The `task.unlabelled` section of classification."""

    threshold: Annotated[Threshold, THRESHOLDS] = Field(adaptive.Config(), description="which of them are learnt from")
    targets: Annotated[Target, TARGETS] = Field(hard.Config(), description="what they are to be taken for")
    strong: Strong = Field(Strong(), description="what their strong view has beyond task.view, which is the weak one")

    @property
    def augmented(self) -> str | None:
        return self.strong.rand_augment

    def views(self, weak: View) -> list[View]:
        """The views of a batch: the weak one, the strong one, and further weak ones where targets average several."""
        return [weak, self.strong.of(weak), *[weak] * (self.targets.views - 1)]

    def describe(self) -> str:
        return (
            f"1 : {self.ratio} with unlabelled pictures, threshold {self.threshold.name}, targets {self.targets.name}, "
            f"weight {self.weight:g}"
        )


class Rows(NamedTuple):
    """The unlabelled images of a micro-batch.

    Attributes:
        weak: [views * U, C, H, W] normalised, view-major.
        strong: [U, C, H, W].
        truth: [U] int64, their labels for measures alone, -1 where there is none; None = there are none.
    """

    weak: Tensor
    strong: Tensor
    truth: Tensor | None


class Consistency(nn.Module):
    """The loss of the unlabelled images of a batch."""

    def __init__(self, config: Unlabelled, classes: int) -> None:
        super().__init__()
        self.config, self.gate = config, config.threshold.build(classes)

    def separate(self, batch: Batch) -> tuple[Batch, Rows]:
        """The labelled images of a micro-batch, in their weak view alone, and the unlabelled ones."""
        shares = self.config.shares
        views = [parted(view.pixels.transpose(0, 1), shares) for view in batch.views]
        (labels, _), (index, _) = (parted(rows, shares) for rows in (batch.labels, batch.index))
        truth = None if batch.truth is None else parted(batch.truth, shares)[1]
        weak = [unlabelled.transpose(0, 1) for _, unlabelled in (views[0], *views[2:])]
        labelled = Batch([ViewBatch(views[0][0].transpose(0, 1), None)], labels, index)
        return labelled, Rows(torch.cat(weak).flatten(0, 1), views[1][1].flatten(0, 1), truth)

    def forward(self, weak: Tensor, strong: Tensor, truth: Tensor | None) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss, and what is logged of it.

        Args:
            weak: logits of the weak views [views * U, C], view-major, without gradient.
            strong: logits of the strong views [U, C].
            truth: see `Rows`.
        """
        p = weak.softmax(-1).unflatten(0, (self.config.targets.views, -1)).mean(0)
        passed = self.gate(p)
        # the mean over all images, a fixed number, and not over those that pass
        consistency = (passed * self.config.targets.distance(strong, p)).mean()
        found = {"consistency": consistency, **self.gate.terms(strong, passed)}
        metrics = {name: value.detach() for name, value in found.items()}
        measures = {**pseudo_labels(p, passed, truth), **self.gate.measures()}
        return self.config.weight * torch.stack([*found.values()]).sum(), metrics | measures

    def symptoms(self) -> list[Symptom]:
        """The known ways in which it teaches nothing, or the wrong thing."""
        threshold = self.config.threshold
        return [
            Symptom(
                "pseudo_largest",
                "nearly all unlabelled pictures are taken for one class: a collapse",
                threshold.when_one_class(),
                at_least=ONE_CLASS,
            ),
            Symptom(
                "passed",
                "hardly an unlabelled picture passes the threshold: they teach nothing",
                threshold.when_none_pass(),
                at_most=NONE_PASS,
            ),
        ]


def pseudo_labels(p: Tensor, passed: Tensor, truth: Tensor | None) -> dict[str, Tensor]:
    """Measures of pseudo-labels, in percent but for the entropy of their distribution over classes, nats.

    Args:
        p: probabilities [U, C], which have no gradient.
        passed: [U] bool.
        truth: [U] labels for measures alone, -1 where there is none; None = there are none.
    """
    label, classes = p.argmax(-1), p.shape[-1]
    shares = mean_over_processes(F.one_hot(label, classes).to(p.dtype).mean(0))
    found = {
        "passed": 100 * passed.to(p.dtype).mean(),
        "pseudo_largest": 100 * shares.max(),
        "pseudo_entropy": torch.special.entr(shares).sum(),
    }
    if truth is None:
        return found
    right, known = label == truth, (truth >= 0).sum().clamp_min(1)
    return found | {"pseudo_accuracy": 100 * right.sum() / known, "passed_right": 100 * (right & passed).sum() / known}
