"""Learning-rate schedules: pure functions of progress, written into the param groups every step.

`ends` says whether the end of the run is part of it, so that another end would have changed every step.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from typing import Annotated, ClassVar, Literal, NamedTuple

from pydantic import BaseModel, Field

from unlabeled.nn.curves import cosine
from unlabeled.pretrain.method import Progress

REFERENCE_BATCH = 256


def peak_lr(base: float, batch_size: int, rule: str = "linear", reference: int = REFERENCE_BATCH) -> float:
    """The learning rate of an effective batch: base x (batch / reference), its root, or base alone.

    Linear is Goyal et al. 2017 (per 256; SimMIM per 512), the root DINOv2's (per 1024).
    """
    power = {"linear": 1.0, "sqrt": 0.5, "none": 0.0}[rule]
    return base * (batch_size / reference) ** power


class Ramp(NamedTuple):
    """What every schedule goes through.

    Attributes:
        start: learning rate where the warm-up begins.
        peak: where it ends.
        minimum: at the end of the run.
        warmup: length of the warm-up, epochs.
    """

    start: float
    peak: float
    minimum: float
    warmup: float


class Cosine(BaseModel, frozen=True, extra="forbid"):
    """Linear warm-up, then half a cosine, both of the fractional epoch (MAE's `util/lr_sched.py`; MoCo v3)."""

    ends: ClassVar = True
    name: Literal["cosine"] = "cosine"
    per_epoch: bool = Field(
        False, description="changes at the beginning of an epoch only (probes of MoCo v3, DINO, iBOT)"
    )

    def at(self, progress: Progress, ramp: Ramp) -> float:
        """The learning rate of a step."""
        epoch, epochs, warmup = progress.epoch, progress.epochs, ramp.warmup
        if self.per_epoch:
            # the fractional epoch of a step is a quotient, rounded: a whole one may lie just below
            epoch = math.floor(epoch + 1e-6)
        if epoch < warmup:
            return ramp.start + (ramp.peak - ramp.start) * epoch / warmup
        if epochs <= warmup:
            return ramp.peak
        return cosine(ramp.peak, ramp.minimum, (epoch - warmup) / (epochs - warmup))


class Table(BaseModel, frozen=True, extra="forbid"):
    """A warm-up of evenly spaced values that reaches its peak on its last step, then half a cosine that starts there
    again (DINO's `utils.cosine_scheduler`; iBOT, DINOv2)."""

    ends: ClassVar = True
    name: Literal["table"] = "table"

    def at(self, progress: Progress, ramp: Ramp) -> float:
        """The learning rate of a step."""
        warm = progress.steps(ramp.warmup)
        if progress.step < warm:
            return ramp.start + (ramp.peak - ramp.start) * progress.step / max(1, warm - 1)
        return cosine(ramp.peak, ramp.minimum, (progress.step - warm) / max(1, progress.total_steps - warm))


class TimmCosine(BaseModel, frozen=True, extra="forbid"):
    """A cosine that counts from step 0, so that it does not start at its peak, one step late (SimMIM with timm)."""

    ends: ClassVar = True
    name: Literal["timm_cosine"] = "timm_cosine"

    def at(self, progress: Progress, ramp: Ramp) -> float:
        """The learning rate of a step."""
        late = max(0, progress.step - 1)
        warm = progress.steps(ramp.warmup)
        if late < warm:
            return ramp.start + (ramp.peak - ramp.start) * late / warm
        return cosine(ramp.peak, ramp.minimum, late / progress.total_steps)


class Constant(BaseModel, frozen=True, extra="forbid"):
    """Linear warm-up, then level to the end, which may be put off (`--extend`). Ignores the minimum."""

    ends: ClassVar = False
    name: Literal["constant"] = "constant"

    def at(self, progress: Progress, ramp: Ramp) -> float:
        """The learning rate of a step."""
        if progress.epoch < ramp.warmup:
            return ramp.start + (ramp.peak - ramp.start) * progress.epoch / ramp.warmup
        return ramp.peak


class Steps(BaseModel, frozen=True, extra="forbid"):
    """Linear warm-up, then a factor at each milestone, one step late (SimMIM's ViT recipe). Ignores the minimum."""

    ends: ClassVar = False
    name: Literal["steps"] = "steps"
    milestones: tuple[Annotated[float, Field(gt=0)], ...] = Field(min_length=1, description="epochs, ascending")
    factor: float = Field(0.1, gt=0, lt=1, description="on the learning rate at each milestone")

    def at(self, progress: Progress, ramp: Ramp) -> float:
        """The learning rate of a step."""
        late = max(0, progress.step - 1)
        warm = progress.steps(ramp.warmup)
        if late < warm:
            return ramp.start + (ramp.peak - ramp.start) * late / warm
        passed = bisect_right([progress.steps(milestone) for milestone in self.milestones], late)
        return ramp.peak * self.factor**passed


class Plateau(BaseModel, frozen=True, extra="forbid"):
    """Linear warm-up, then level; lowered by a factor whenever the watched score (`watch`) has not improved for
    `patience` looks, down to the minimum."""

    ends: ClassVar = False
    name: Literal["plateau"] = "plateau"
    factor: float = Field(0.1, gt=0, lt=1, description="on the learning rate where the score stands still")
    patience: int = Field(5, ge=1, description="looks without an improvement before that")

    def at(self, progress: Progress, ramp: Ramp) -> float:
        """The learning rate of a step, where it has not been lowered."""
        return Constant().at(progress, ramp)


Schedule = Annotated[Cosine | Table | TimmCosine | Steps | Plateau | Constant, Field(discriminator="name")]
