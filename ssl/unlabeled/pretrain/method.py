"""The contract between a method and everything around it: what it receives, what it returns, what it may touch."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterable
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from unlabeled.backbone.encoder import Encoder
from unlabeled.nn.mixing import Mix
from unlabeled.nn.patches import PatchMask


class Progress(NamedTuple):
    """Where a run stands. Every schedule is a pure function of it.

    Attributes:
        step: optimizer steps done so far.
        total_steps: optimizer steps of the whole run.
        epoch: fractional epochs done so far.
        epochs: epochs of the whole run.
    """

    step: int
    total_steps: int
    epoch: float
    epochs: float

    def steps(self, epochs: float) -> int:
        """How many steps so many epochs are."""
        return round(epochs * self.total_steps / self.epochs)


class ViewBatch(NamedTuple):
    """All crops that one `View` asked for.

    Attributes:
        pixels: [count, B, C, H, W], normalised, on the device.
        mask: a PatchMask with leading axes [count, B], or None.
        hidden: how many patches it hides in all crops together, as the host knows it; None = unknown. Shapes may depend
            on it without waiting for the device.
    """

    pixels: Tensor
    mask: PatchMask | None
    hidden: int | None = None

    def flat(self) -> tuple[Tensor, PatchMask | None]:
        """Pixels [count * B, C, H, W] and mask, view-major."""
        return self.pixels.flatten(0, 1), None if self.mask is None else self.mask.flat()


class Batch(NamedTuple):
    """One micro-batch of one process.

    Attributes:
        views: in the order that the method's Config lists them.
        labels: [B] int64, -1 where unknown.
        index: [B] int64, the samples' numbers in their source.
        mix: how pictures are to be mixed with their neighbours; None = they are not.
    """

    views: list[ViewBatch]
    labels: Tensor
    index: Tensor  # type: ignore[assignment]  # as every data set calls it, though tuples have a method of it
    mix: Mix | None = None


class Output(NamedTuple):
    """What a forward returns.

    Attributes:
        loss: to minimise.
        metrics: detached scalars to log.
        features: [B, D] detached, a vector per picture as it will be used; their effective rank is logged. None = none.
    """

    loss: Tensor
    metrics: dict[str, Tensor]
    features: Tensor | None = None


class Symptom(NamedTuple):
    """A value of a logged metric that tells a collapse from learning.

    Attributes:
        metric: its name in `Output.metrics`, or `loss` or `grad_norm`.
        meaning: what is happening, for a person.
        advice: which recipe field to turn, and to what.
        at_most, at_least: the reading is ill from here on, downwards or upwards.
    """

    metric: str
    meaning: str
    advice: str
    at_most: float = -math.inf
    at_least: float = math.inf


class Method(nn.Module, ABC):
    """A method is abstract or final: a concrete one is never subclassed.

    It receives views in the order it declared and returns one loss. It never touches the optimizer, the device,
    process groups, files or logging.
    """

    @abstractmethod
    def forward(self, batch: Batch, progress: Progress) -> Output:
        """A pure function of weights, batch and progress, dropout and drop path aside."""

    @abstractmethod
    def exports(self) -> dict[str, Encoder]:
        """The encoders worth keeping; what the paper evaluates comes first."""

    def pooling(self) -> Literal["cls", "mean"]:
        """How tokens become a picture's one vector when its encoder is evaluated; written into the export."""
        return next(iter(self.exports().values())).default_pool

    def after_step(self, progress: Progress) -> None:
        """Called once after every optimizer step that was taken (EMA teachers, centres), with that step's progress."""

    def batch_dependent(self) -> bool:
        """Whether the loss of a picture depends on the others of its step, so that micro-batches would change it."""
        return False

    def symptoms(self) -> list[Symptom]:
        """What would show that it collapses instead of learning."""
        return []

    def frozen(self, progress: Progress) -> Iterable[nn.Parameter]:
        """Parameters that this step leaves alone: no update and no weight decay (DINO's last layer at first)."""
        return ()

    def inactive(self, progress: Progress) -> Iterable[nn.Parameter]:
        """Parameters that do not take part in this step: as `held`, and clipping does not count their gradients."""
        return ()

    def clip_groups(self) -> list[list[nn.Parameter]]:
        """Parameters whose gradients are clipped together by `optim.clip_by: part` (DINOv2: backbone, each head)."""
        return [list(child.parameters()) for child in self.children()]

    def decays(self, name: str, parameter: nn.Parameter) -> bool:
        """Whether weight decay applies: by default to everything but 1-D tensors and biases."""
        return parameter.ndim > 1 and not name.endswith(".bias")

    def lr_scale(self, name: str) -> float:
        """Factor on the learning rate of a parameter."""
        return 1.0

    def begins(self, name: str) -> float:
        """Epoch before which a parameter's learning rate is 0, while its moments grow (DINOv2's last layers)."""
        return 0.0

    @torch.no_grad()
    def pictures(self, batch: Batch) -> Tensor | None:
        """What a person would want to see of this batch: [B, rows, C, H, W] normalised; None = the crops themselves."""
        return None
