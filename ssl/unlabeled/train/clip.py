"""Gradient clipping without a device sync: by the norm of all gradients, of each tensor or part; by value."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from unlabeled.pretrain.method import Method

ClipBy = Literal["global", "tensor", "part"]


def clip_gradients(method: Method, limit: float | None, by: ClipBy, value: float | None = None) -> Tensor:
    """Clip gradients in place; returns the norm of all before clipping by norm, a scalar on their device.

    Args:
        method: its gradients are clipped.
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
    norms = torch._foreach_norm(gradients)
    torch._foreach_mul_(gradients, [(limit / (norm + 1e-6)).clamp(max=1.0) for norm in norms])
    return torch.linalg.vector_norm(torch.stack(list(norms)))


def _clip(parameters: list[nn.Parameter], limit: float | None) -> Tensor:
    norm = torch.nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
    if limit is not None:
        torch.nn.utils.clip_grads_with_norm_(parameters, limit, norm)
    return norm
