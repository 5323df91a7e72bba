"""Param groups by a method's rules, and their learning rates and weight decay at every step."""

from __future__ import annotations

from typing import Any

from torch import nn
from torch.optim import Optimizer

from unlabeled.nn.curves import cosine
from unlabeled.pretrain.method import Method, Progress
from unlabeled.train.optimizer import Optim
from unlabeled.train.schedule import Ramp


def param_groups(method: Method, weight_decay: float) -> list[dict[str, Any]]:
    """Group trainable parameters by learning-rate scale, weight decay, and the epoch in which they begin to learn."""
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


def set_rates(optimizer: Optimizer, config: Optim, peak: float, progress: Progress, watched: float = 1.0) -> None:
    """Write the scheduled learning rate, times each group's scale, and weight decay into the param groups.

    Args:
        optimizer: over groups of `param_groups`.
        config: the recipe's `optim`.
        peak: learning rate after warm-up.
        progress: of the run.
        watched: factor by a watched score that stands still, see `Schedule.lowering`.
    """
    decay = config.weight_decay
    if config.weight_decay_end is not None:
        decay = cosine(decay, config.weight_decay_end, progress.step / progress.total_steps)
    for group in optimizer.param_groups:
        inactive = progress.epoch < group.get("begins", 0.0)
        group["lr"] = 0.0 if inactive else _rate(config, peak, progress, watched, group["lr_scale"])
        group["weight_decay"] = decay if group["decays"] else 0.0


def _rate(config: Optim, peak: float, progress: Progress, watched: float, scale: float) -> float:
    """The learning rate of a group, whose scale is on everything or on the peak alone."""
    whole, top = (scale, 1.0) if config.scale_minimum else (1.0, scale)
    start, minimum = config.ends(peak)
    ramp = Ramp(start, peak * top, minimum, config.warmup_epochs)
    lr = config.schedule.at(progress, ramp)
    return whole * (lr if watched == 1 else max(lr * watched, ramp.minimum))
