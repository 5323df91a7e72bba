"""Param groups by a method's rules, their learning rates and weight decay at every step, and gradient clipping."""

from __future__ import annotations

from typing import Any

import torch
from accelerate.optimizer import AcceleratedOptimizer
from torch import Tensor, nn
from torch.optim import Optimizer

from unlabeled.nn.curves import cosine
from unlabeled.pretrain.method import Method, Progress
from unlabeled.train.optimizer import ClipBy, Groups, Optim
from unlabeled.train.schedule import Ramp, level

Climb = tuple[float, float] | None  # the shares of the run between which a rate climbs from 0; None = it does not


def param_groups(method: Method, weight_decay: float) -> Groups:
    """Group trainable parameters by learning-rate scale and schedule, weight decay, and when they begin to learn."""
    groups: dict[tuple[float, bool, float, Climb, bool], list[nn.Parameter]] = {}
    continued = method.continuation
    for name, parameter in method.named_parameters():
        if parameter.requires_grad:
            scale, climb = (1.0, None) if continued is None else (continued.scale(name), continued.climb(name))
            scale *= method.lr_scale(name)
            key = scale, method.decays(name, parameter), method.begins(name), climb, method.keeps_rate(name)
            groups.setdefault(key, []).append(parameter)
    return [
        {
            "params": members,
            "lr_scale": scale,
            "decays": decay,
            "weight_decay": weight_decay * decay,
            "begins": begins,
            "climb": climb,
            "keeps_rate": keeps_rate,
        }
        for (scale, decay, begins, climb, keeps_rate), members in groups.items()
    ]


def set_rates(optimizer: Optimizer, config: Optim, peak: float, progress: Progress, watched: float = 1.0) -> None:
    """Write the scheduled learning rate, times each group's scale, and weight decay into groups of `param_groups`; a
    group that keeps its rate has that of the peak after the warm-up.

    Args:
        optimizer, config, progress: of the run.
        peak: learning rate after warm-up.
        watched: factor by a watched score that stands still, see `Schedule.lowering`.
    """
    decay, planned = config.weight_decay, config.planned(progress)
    if config.weight_decay_end is not None:
        done = (planned.step + config.schedule.first) / planned.total_steps
        decay = cosine(decay, config.weight_decay_end, done)
    for group in optimizer.param_groups:
        inactive = progress.epoch < group.get("begins", 0.0)
        group["lr"] = 0.0 if inactive else _rate(config, peak, planned, watched, group)
        if (climb := group.get("climb")) is not None:
            start, end = climb
            group["lr"] *= min(1.0, max(0.0, (progress.share - start) / (end - start)))
        group["weight_decay"] = decay if group["decays"] else 0.0


def scheduled(group: dict[str, Any]) -> bool:
    """Whether a group's learning rate follows the schedule, see `Method.keeps_rate`."""
    return not group.get("keeps_rate", False)


def _rate(config: Optim, peak: float, progress: Progress, watched: float, group: dict[str, Any]) -> float:
    """The learning rate of a group, whose scale is on everything or on the peak alone."""
    scale: float = group["lr_scale"]
    whole, top = (scale, 1.0) if config.scale_minimum else (1.0, scale)
    start, minimum = config.ends(peak)
    ramp = Ramp(start, peak * top, minimum, config.warmup_epochs)
    if not scheduled(group):
        return whole * level(progress, ramp)
    lr = config.schedule.at(progress, ramp)
    return whole * (lr if watched == 1 else max(lr * watched, ramp.minimum))


class Guarded:
    """An optimizer whose step is skipped where it is broken, which only the device knows.

    Nothing is waited for where the optimizer obeys torch's `found_inf`. Others are left alone by the host, and so are
    parameters in their first step: until they have taken one, they have no state.
    """

    def __init__(self, optimizer: AcceleratedOptimizer) -> None:
        self.optimizer = optimizer
        groups = optimizer.optimizer.param_groups
        self._new = [p for group in groups for p in group["params"]]  # parameters that have taken no step

    def step(self, broken: Tensor | None) -> None:
        """Take a step, unless `broken` [] bool, on the device, is true; None = it is not."""
        own: Any = self.optimizer.optimizer
        if self.optimizer.scaler is None:  # which skips by itself, to lower its scale
            obeys = getattr(own, "_step_supports_amp_scaling", False)
            begins = any(p.grad is not None for p in self._new)
            if broken is not None and (begins or not obeys) and broken:
                return
            if obeys:
                own.found_inf = None if broken is None else broken.float()
            self._new = [p for p in self._new if p.grad is None]
        self.optimizer.step()


def clip_gradients(method: Method, limit: float | None, by: ClipBy, value: float | None = None) -> Tensor:
    """Clip a method's gradients in place, without a device sync; returns the norm of all before that, on the device.

    Args:
        limit: largest norm; None = only measure.
        by: `global` (MAE, SimMIM), `tensor` (DINO's `utils.clip_gradients`, iBOT) or `part` (DINOv2: the backbone and
            each head, see `Method.clip_groups`).
        value: largest value of a gradient, applied first; None = no limit.
    """
    parameters = [p for p in method.parameters() if p.grad is not None]
    if value is not None:
        torch.nn.utils.clip_grad_value_(parameters, value)
    if limit is None or by == "global":
        return _clip(parameters, limit)
    if by == "part":
        groups = [[p for p in group if p.grad is not None] for group in method.clip_groups()]
        return torch.linalg.vector_norm(torch.stack([_clip(group, limit) for group in groups]))
    gradients = [p.grad for p in parameters if p.grad is not None]
    norms = torch.stack(torch._foreach_norm(gradients))  # so that the scales of all cost no more than that of one
    torch._foreach_mul_(gradients, (limit / (norms + 1e-6)).clamp(max=1.0).unbind())
    return torch.linalg.vector_norm(norms)


def _clip(parameters: list[nn.Parameter], limit: float | None) -> Tensor:
    norm = torch.nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
    if limit is not None:
        torch.nn.utils.clip_grads_with_norm_(parameters, limit, norm)
    return norm
