"""The contract of optimizers, with the rates and weight decay of a run. Kinds are the files of `optimizers/`."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Annotated, Any, ClassVar, Literal

import torch
from pydantic import BaseModel, Field
from torch import Tensor

from unlabeled.pretrain.method import Progress
from unlabeled.registry import ByFile
from unlabeled.train.schedule import AnySchedule
from unlabeled.train.schedules import cosine

ClipBy = Literal["global", "tensor", "part"]
Unit = Annotated[float, Field(ge=0, lt=1)]
Groups = list[dict[str, Any]]


class Optim(BaseModel, ABC, frozen=True, extra="forbid"):
    """A recipe's `optim:` section. Its fields are what recipes set; `name` is the name of its file."""

    copies: ClassVar[int] = 2  # tensors of a parameter's size that the optimizer keeps, for the estimate of memory
    gentle: ClassVar[float | None] = None  # highest usual rate of weights that have learnt already; None = not known
    name: str
    base_lr: float = Field(
        1.5e-4,
        gt=0,
        allow_inf_nan=False,
        description="learning rate of `reference_batch` samples: peak = base_lr x batch / 256",
    )
    lr_rule: Literal["linear", "sqrt", "none"] = Field("linear", description="how the peak grows with the batch")
    reference_batch: int = Field(256, ge=1, description="batch that base_lr is meant for")
    min_lr: float = Field(0.0, ge=0, allow_inf_nan=False, description="learning rate at the end")
    warmup_epochs: float = Field(0.0, ge=0, allow_inf_nan=False, description="epochs of linear warm-up")
    warmup_lr: float = Field(0.0, ge=0, allow_inf_nan=False, description="where the warm-up starts")
    schedule: AnySchedule = Field(cosine.Config(), description="how the learning rate goes")
    weight_decay: float = Field(0.05, ge=0, allow_inf_nan=False, description="of the parameters that the method decays")
    weight_decay_end: float | None = Field(
        None, ge=0, allow_inf_nan=False, description="weight decay at the end, by a cosine; null = constant"
    )
    stretch: float = Field(
        1.0,
        ge=1,
        allow_inf_nan=False,
        description="lengths of the run after which rate and weight decay would be at their ends, so that they are cut "
        "off (MSN: 1.25)",
    )
    scale_minimum: bool = Field(
        True,
        description="whether layers' factors on the rate also hold for min_lr and warmup_lr (MAE, iBOT), or for the "
        "peak alone (SimMIM)",
    )
    scale_ends: bool = Field(
        False, description="whether min_lr and warmup_lr grow with the batch as the peak does (SimMIM)"
    )
    clip: float | None = Field(None, gt=0, allow_inf_nan=False, description="largest gradient norm; null = no clipping")
    clip_by: ClipBy = Field(
        "global", description="norm of all gradients (global), of each tensor, or of each part of the method"
    )
    clip_value: float | None = Field(
        None, gt=0, allow_inf_nan=False, description="largest value of a gradient, cut before the norm; null = none"
    )

    @abstractmethod
    def build(self, groups: Groups) -> torch.optim.Optimizer:
        """The optimizer over param groups; their rates are written every step, see `optim.set_rates`.

        On a GPU the host waits for the device in every step, unless the optimizer says `_step_supports_amp_scaling` as
        torch's fused ones do: then its step changes nothing where its `found_inf` [], on the device, is not 0.
        """

    def peak(self, batch_size: int) -> float:
        """The peak learning rate of an effective batch: base x (batch / reference), its root, or base alone.

        Linear is Goyal et al. 2017 (per 256; SimMIM per 512), the root DINOv2's (per 1024).
        """
        power = {"linear": 1.0, "sqrt": 0.5, "none": 0.0}[self.lr_rule]
        return self.base_lr * (batch_size / self.reference_batch) ** power

    def planned(self, progress: Progress) -> Progress:
        """How far a run is on the way to the ends of its schedules."""
        steps, epochs = round(progress.total_steps * self.stretch), progress.epochs * self.stretch
        return progress._replace(total_steps=steps, epochs=epochs)

    def ends(self, peak: float) -> tuple[float, float]:
        """The learning rates where the warm-up starts and at the end of the run, beside a peak."""
        growth = peak / self.base_lr if self.scale_ends else 1.0
        return self.warmup_lr * growth, self.min_lr * growth


class Skipping(torch.optim.Optimizer):
    """An optimizer whose step changes nothing where its `found_inf` [], on the device, is not 0."""

    _step_supports_amp_scaling = True
    _skipped: Tensor | None = None  # [] bool, in a step; None = nobody asked

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Update every parameter that has a gradient."""
        found_inf = getattr(self, "found_inf", None)
        self._skipped = None if found_inf is None else found_inf > 0
        loss = closure() if closure is not None else None
        for group in self.param_groups:
            if parameters := [parameter for parameter in group["params"] if parameter.grad is not None]:
                self.update_(parameters, [parameter.grad for parameter in parameters], group)
        return loss

    def update_(self, parameters: list[Tensor], gradients: list[Tensor], group: dict[str, Any]) -> None:
        """Update parameters of a group, by operators on lists; new values go through `unless_skipped`."""
        raise NotImplementedError

    def unless_skipped(self, before: Sequence[Tensor | float], after: Sequence[Tensor]) -> list[Tensor]:
        """What a step makes, or what was before it where the step is skipped."""
        if (skipped := self._skipped) is None:
            return list(after)
        return [torch.where(skipped, old, new) for old, new in zip(before, after, strict=True)]


AnyOptim = Annotated[Optim, ByFile("unlabeled.train.optimizers", Optim)]
