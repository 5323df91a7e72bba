"""Optimizers as recipes name them, and the param groups that a method's rules make."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Annotated, Any, Literal

import torch
from pydantic import BaseModel, Field
from torch import Tensor, nn
from torch.optim import Optimizer

from unlabeled.nn.curves import cosine
from unlabeled.pretrain.method import Method, Progress
from unlabeled.train.clip import ClipBy
from unlabeled.train.schedules import REFERENCE_BATCH, Cosine, Ramp, Schedule, peak_lr

Unit = Annotated[float, Field(ge=0, lt=1)]


class _Schedule(BaseModel, frozen=True, extra="forbid"):
    base_lr: float = Field(
        1.5e-4,
        gt=0,
        allow_inf_nan=False,
        description="learning rate of `reference_batch` samples: peak = base_lr x batch / 256",
    )
    lr_rule: Literal["linear", "sqrt", "none"] = Field("linear", description="how the peak grows with the batch")
    reference_batch: int = Field(REFERENCE_BATCH, ge=1, description="batch that base_lr is meant for")
    min_lr: float = Field(0.0, ge=0, allow_inf_nan=False, description="learning rate at the end")
    warmup_epochs: float = Field(0.0, ge=0, allow_inf_nan=False, description="epochs of linear warm-up")
    warmup_lr: float = Field(0.0, ge=0, allow_inf_nan=False, description="where the warm-up starts")
    schedule: Schedule = Field(Cosine(), description="how the learning rate goes")
    weight_decay: float = Field(0.05, ge=0, allow_inf_nan=False, description="of the parameters that the method decays")
    weight_decay_end: float | None = Field(
        None, ge=0, allow_inf_nan=False, description="weight decay at the end, by a cosine; null = constant"
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

    def peak(self, batch_size: int) -> float:
        """The peak learning rate of an effective batch."""
        return peak_lr(self.base_lr, batch_size, self.lr_rule, self.reference_batch)

    def ends(self, peak: float) -> tuple[float, float]:
        """The learning rates where the warm-up starts and at the end of the run, beside a peak."""
        growth = peak / self.base_lr if self.scale_ends else 1.0
        return self.warmup_lr * growth, self.min_lr * growth


class AdamW(_Schedule, frozen=True, extra="forbid"):
    """AdamW, fused where the device has it."""

    name: Literal["adamw"] = "adamw"
    betas: tuple[Unit, Unit] = Field((0.9, 0.95), description="decay of the two moments")
    eps: float = Field(1e-8, gt=0, allow_inf_nan=False, description="added to the root of the second moment")

    def build(self, groups: list[dict[str, Any]]) -> Optimizer:
        """The optimizer over param groups."""
        return torch.optim.AdamW(groups, lr=0.0, betas=self.betas, eps=self.eps, fused=_can_fuse(groups))


class SGD(_Schedule, frozen=True, extra="forbid"):
    """Stochastic gradient descent with momentum."""

    name: Literal["sgd"] = "sgd"
    momentum: Unit = Field(0.9, description="of the velocity")

    def build(self, groups: list[dict[str, Any]]) -> Optimizer:
        """The optimizer over param groups."""
        return torch.optim.SGD(groups, lr=0.0, momentum=self.momentum)


class Lars(_Schedule, frozen=True, extra="forbid"):
    """LARS, for linear probes at large batch (MAE's `util/lars.py`)."""

    name: Literal["lars"] = "lars"
    momentum: Unit = Field(0.9, description="of the velocity")
    trust: float = Field(0.001, gt=0, description="trust coefficient")

    def build(self, groups: list[dict[str, Any]]) -> Optimizer:
        """The optimizer over param groups."""
        return LARS(groups, lr=0.0, momentum=self.momentum, trust=self.trust)


OptimConfig = Annotated[AdamW | SGD | Lars, Field(discriminator="name")]


class LARS(Optimizer):
    """Layer-wise adaptive rate scaling (You et al. 2017), as MAE and MoCo v3 implement it.

    Tensors of more than one axis get weight decay and the trust ratio; biases and norms are plain SGD.

    Args:
        params: parameters or groups.
        lr, momentum, weight_decay: as in SGD.
        trust: trust coefficient.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float,
        momentum: float = 0.9,
        weight_decay: float = 0.0,
        trust: float = 0.001,
    ) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay, "trust": trust})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """One update: v <- momentum v + scaled gradient; p <- p - lr v."""
        loss = closure() if closure is not None else None
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    state = self.state[p]
                    update = self._scaled(p, p.grad, group)
                    if "momentum_buffer" not in state:
                        state["momentum_buffer"] = torch.zeros_like(p)
                    p.sub_(group["lr"] * state["momentum_buffer"].mul_(group["momentum"]).add_(update))
        return loss

    @staticmethod
    def _scaled(p: Tensor, gradient: Tensor, group: dict[str, Any]) -> Tensor:
        if p.ndim < 2:
            return gradient
        gradient = gradient.add(p, alpha=group["weight_decay"])
        p_norm, g_norm = p.norm(), gradient.norm()
        both = (p_norm > 0) & (g_norm > 0)
        return gradient * torch.where(both, group["trust"] * p_norm / g_norm, 1.0)


def param_groups(method: Method, weight_decay: float) -> list[dict[str, Any]]:
    """Trainable parameters grouped by the method's rules: learning-rate scale, whether weight decay applies, and the
    epoch in which their learning begins."""
    groups: dict[tuple[float, bool, float], list[nn.Parameter]] = {}
    for name, parameter in method.named_parameters():
        if parameter.requires_grad:
            key = (method.lr_scale(name), method.decays(name, parameter), method.begins(name))
            groups.setdefault(key, []).append(parameter)
    return [
        {
            "params": members,
            "lr_scale": scale,
            "decays": decay,
            "weight_decay": weight_decay if decay else 0.0,
            "begins": begins,
        }
        for (scale, decay, begins), members in groups.items()
    ]


def set_rates(optimizer: Optimizer, config: Any, peak: float, progress: Progress, watched: float = 1.0) -> None:
    """Write the scheduled learning rate, times each group's scale, and weight decay into the param groups.

    Args:
        optimizer: over groups of `param_groups`.
        config: the recipe's `optim`.
        peak: learning rate after warm-up.
        progress: where the run stands.
        watched: factor of a watched score that stands still, see `Plateau`.
    """
    decay = config.weight_decay
    if config.weight_decay_end is not None:
        decay = cosine(decay, config.weight_decay_end, progress.step / progress.total_steps)
    for group in optimizer.param_groups:
        asleep = progress.epoch < group.get("begins", 0.0)
        group["lr"] = 0.0 if asleep else _rate(config, peak, progress, watched, group["lr_scale"])
        group["weight_decay"] = decay if group["decays"] else 0.0


def _rate(config: Any, peak: float, progress: Progress, watched: float, scale: float) -> float:
    """The learning rate of a group. Its scale is on everything, or on the peak alone."""
    whole, top = (scale, 1.0) if config.scale_minimum else (1.0, scale)
    start, minimum = config.ends(peak)
    ramp = Ramp(start, peak * top, minimum, config.warmup_epochs)
    lr = config.schedule.at(progress, ramp)
    return whole * (lr if watched == 1 else max(lr * watched, ramp.minimum))


def _can_fuse(groups: list[dict[str, Any]]) -> bool:
    kinds = {p.device.type for group in groups for p in group["params"]}
    return kinds <= {"cuda", "cpu", "mps", "xpu"} and len(kinds) == 1
