"""The contract of pretraining methods: their settings, the batch they receive, the loss they return.

Kinds are the files of `methods/`. Each has a `Config`, a `MethodConfig` that builds a `Method`.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal, NamedTuple

import torch
from pydantic import ValidationInfo, field_validator, model_validator
from torch import Tensor, nn

from unlabeled.backbone.config import EncoderConfig
from unlabeled.backbone.encoder import Encoder, Hiding
from unlabeled.backbone.folder import Preprocessing
from unlabeled.data.batch.batch import Batch
from unlabeled.data.mask import Rounding, with_equal_counts
from unlabeled.data.view.mixing import Mixing
from unlabeled.data.view.views import View
from unlabeled.nn.batchnorm import normalises
from unlabeled.pretrain.continued import Continuation, Continued
from unlabeled.pretrain.rescale import Rescalable
from unlabeled.registry import ByFile


class Progress(NamedTuple):
    """How far a run is. Every schedule is a pure function of it."""

    step: int  # optimizer steps done so far
    total_steps: int  # optimizer steps of the whole run
    epoch: float  # fractional epochs done so far
    epochs: float  # epochs of the whole run

    @property
    def share(self) -> float:
        """The share of the run that is done, 0 to 1."""
        return self.step / self.total_steps

    def steps(self, epochs: float) -> int:
        """The number of steps in a number of epochs."""
        return round(epochs * self.total_steps / self.epochs)


class Output(NamedTuple):
    """The result of a forward pass."""

    loss: Tensor  # a scalar to minimise
    metrics: dict[str, Tensor]  # detached scalars to log
    features: Tensor | None = None  # [B, D] detached, one per image: their effective rank is logged; None = it is not


class Symptom(NamedTuple):
    """The range of a logged metric that means a collapse."""

    metric: str  # a name in `Output.metrics`, or `loss` or `grad_norm`
    meaning: str  # the problem, in words for the user
    advice: str  # the recipe field to change, and its new value
    at_most: float = -math.inf  # the metric shows a collapse at or below the one, at or above the other
    at_least: float = math.inf


@dataclass(frozen=True)
class Crops:
    """The crops that a method expects of one of its views."""

    count: int | None = 1  # of an image, 1 or 2; None = any number
    masked: bool = False  # whether patches are hidden
    equal_counts: bool = False  # whether every crop must hide as many
    rounding: Rounding | None = None  # of the masked share, where the recipe leaves it open
    like: str | None = None  # an earlier view, whose crops have the same size

    def fitted(self, method: str, name: str, view: View, others: Mapping[str, Any]) -> View:
        """The view of a recipe's field `name`, its mask rounded as the method does; `others` are the fields before it.

        Raises ValueError when its crops are not what the method expects.
        """
        kind, mask = "masked" if self.masked else "whole", view.mask
        if self.count is None and self.masked != (mask is not None):
            raise ValueError(f"{method} needs {kind} {name} crops, found mask {mask}")
        if self.count is not None and (self.count, self.masked) != (view.count, mask is not None):
            crops = f"one {kind} crop" if self.count == 1 else f"two {kind} crops"
            raise ValueError(f"{method} needs {crops}, found count {view.count} and mask {mask}")
        other = others.get(self.like or "", view)
        if (other.shape, other.sizes) != (view.shape, view.sizes):
            found = " and ".join(str(list(one.sizes) or one.shape) for one in (other, view))
            raise ValueError(f"expected {self.like} and {name} of one size, found {found}")
        if mask is not None and self.equal_counts and not mask.equal_counts:
            raise ValueError(
                f"{method} needs a mask that hides as many patches in every crop, found mask {mask.name}. "
                f"Use {with_equal_counts()}."
            )
        if mask is None or self.rounding is None:
            return view
        return view.model_copy(update={"mask": mask.rounded(self.rounding)})


class MethodConfig(Rescalable, ABC, frozen=True, extra="forbid", validate_default=True):
    """The settings of a method: the recipe's `method:` section. `name` is the name of its file.

    A concrete one has one or more fields of type `View`, in the order of `Batch.views`, and after them a field
    `encoder: EncoderConfig`.
    """

    title: ClassVar[str] = ""  # the method in messages; empty = its name
    crops: ClassVar[dict[str, Crops]] = {}  # expected of each view; others may be any
    hides: ClassVar[Hiding | None] = None  # how the encoder hides patches; None = not at all
    any_size: ClassVar[bool] = False  # whether the encoder sees crops of several sizes
    class_token: ClassVar[bool] = False  # whether it reads the class token, whatever the encoder's own pooling
    ends: ClassVar[dict[str, float]] = {}  # fields with a schedule over the whole run, and their last values
    name: str

    @field_validator("*")
    @classmethod
    def _fits(cls, value: Any, info: ValidationInfo) -> Any:
        title, name = cls.title or cls.model_fields["name"].default, info.field_name
        if isinstance(value, View) and name in cls.crops:
            return cls.crops[name].fitted(title, name, value, info.data)
        if isinstance(value, EncoderConfig):
            value.require(title, cls.hides, cls.any_size, cls.class_token)
            for view in (found for found in info.data.values() if isinstance(found, View)):
                view.check(value.crop_multiple, value.channels, cls.mask_patch_of(view, value))
                value.check_size(view.shape)
        return value

    @model_validator(mode="after")
    def _sizes_go_together(self) -> MethodConfig:
        shares = sorted({view.shares for view in self.views if view.sizes})
        if shares and not self.any_size:
            raise ValueError(f"{self.title or self.name} sees crops of one size: set size, leave sizes out")
        if len(shares) > 1:
            raise ValueError(f"expected the same shares of sizes in all views, found {' and '.join(map(str, shares))}")
        return self

    @model_validator(mode="after")
    def _twins_fit(self) -> MethodConfig:
        try:
            for view in (view for view in self.views if view.again is not None):
                view.check(self.backbone.crop_multiple, self.backbone.channels)
        except ValueError as error:
            raise ValueError(f"of crops that are cut again at another size (gram.size): {error}") from error
        return self

    @classmethod
    def mask_patch_of(cls, view: View, encoder: EncoderConfig) -> int:
        """The side of the patches that a view's mask is drawn over, pixels: by default those of the tokens."""
        return encoder.patch_size

    @property
    def views(self) -> tuple[View, ...]:
        """The crops that `Method.forward` receives, in order."""
        return tuple(value for _, value in self if isinstance(value, View))

    @property
    def backbone(self) -> EncoderConfig:
        """The settings of its encoder."""
        return next(value for _, value in self if isinstance(value, EncoderConfig))

    @property
    def mask_patch(self) -> int:
        """The side of the patches that masks are drawn over, pixels: the same in all views."""
        return min(self.mask_patch_of(view, self.backbone) for view in self.views)

    @property
    def mixing(self) -> Mixing:
        """How images of the first view are mixed with their neighbours: `Batch.mix`; by default not at all."""
        return Mixing()

    def seeing(self, how: Preprocessing) -> MethodConfig:
        """The same for pictures that come normalised so, where other networks see them too than the one that learns."""
        return self

    def relies_on(self) -> dict[str, str]:
        """Other weights that it learns from, by field, in words that differ where they do: a run goes on with the same
        alone. Raises UserError when there are none."""
        return {}

    @abstractmethod
    def build(self) -> PretrainMethod:
        """A randomly initialised model."""


METHODS = ByFile("unlabeled.pretrain.methods", MethodConfig)
AnyMethod = Annotated[MethodConfig, METHODS]


class Method(nn.Module, ABC):
    """A model to train and its loss. It is abstract or final: no method inherits from another.

    It never touches the optimizer, the device, process groups, files or logging.
    """

    continuation: Continuation | None = None  # how an encoder that has learnt already learns on; None = as a new one

    @abstractmethod
    def forward(self, batch: Batch, progress: Progress) -> Output:
        """Compute the loss: a function of weights, batch and progress alone, but for dropout and drop path."""

    def after_step(self, progress: Progress, broken: Tensor | None = None) -> None:
        """Update teachers and centres after an optimizer step; `progress` is that step's.

        Where `broken` [] bool, on the device, is true the step was skipped and no parameter may change: `ema_` sees to
        that. Floating-point buffers are put back by the engine. A method that takes `progress` alone is called after
        steps that were taken, which costs a wait for the device.
        """

    def batch_statistics(self) -> tuple[str, ...]:
        """What makes the loss of an image depend on the others of its batch, so that accumulation would change it, in
        words: by default batch normalisation, of every part that learns; () = nothing does."""
        return tuple(
            f"batch normalisation of {part.model if isinstance(part, Encoder) else name}"
            for name, part in self.named_children()
            if normalises(part) and any(parameter.requires_grad for parameter in part.parameters())
        )

    def symptoms(self) -> list[Symptom]:
        """The known ways to collapse."""
        return []

    def frozen(self, progress: Progress) -> Iterable[nn.Parameter]:
        """Parameters without an update in this step, weight decay included; their gradients count for clipping."""
        return ()

    def inactive(self, progress: Progress) -> Iterable[nn.Parameter]:
        """Parameters without a gradient or an update in this step (gradual unfreezing), left out of clipping."""
        return ()

    def clip_groups(self) -> list[list[nn.Parameter]]:
        """Groups of parameters for `optim.clip_by: part`, each clipped by its own norm (DINOv2: backbone, heads)."""
        return [list(child.parameters()) for child in self.children()]

    def decays(self, name: str, parameter: nn.Parameter) -> bool:
        """Whether weight decay applies: by default to all but 1-D tensors and biases."""
        return parameter.ndim > 1 and not name.endswith(".bias")

    def lr_scale(self, name: str) -> float:
        """Factor on the learning rate of a parameter."""
        return 1.0

    def keeps_rate(self, name: str) -> bool:
        """Whether the learning rate of a parameter stays at its peak after the warm-up, whatever the schedule."""
        return False

    def begins(self, name: str) -> float:
        """Epoch at which the learning rate of a parameter starts; before, it is 0 and the optimizer's moments grow."""
        return 0.0

    @torch.no_grad()
    def pictures(self, batch: Batch) -> Tensor | None:
        """Images to show of this batch [B, rows, C, H, W], normalised; None = the crops themselves."""
        return None


class PretrainMethod(Method, ABC):
    """A method that learns an encoder."""

    of_a_run: ClassVar[tuple[str, ...]] = ()  # parts that are neither exported nor begun with: checkpoints alone

    @abstractmethod
    def exports(self) -> dict[str, Encoder]:
        """The encoders to keep by name, first the one that the paper evaluates."""

    def evaluated(self) -> Encoder:
        """The encoder that the paper evaluates."""
        return next(iter(self.exports().values()))

    def continue_(self, settings: Continued) -> None:
        """Let the encoders learn on as a recipe says, see `Continued`. Raises UserError when they cannot."""
        prefixes = {id(module): f"{name}." for name, module in self.named_modules()}
        encoders = {prefixes[id(encoder)]: encoder for encoder in self.exports().values()}
        self.continuation = Continuation(settings, encoders)

    def pooling(self) -> Literal["cls", "mean", "own"]:
        """How the tokens of that encoder become the feature of an image."""
        return self.evaluated().default_pool
