"""Losses between distributions over prototypes, the teacher's and the student's, in float32 also under autocast.

Each returns the mean over the rows of this process.

Over many prototypes rows are taken a few at a time, so that no temporary is as large as the logits in float32. Of
65,536 prototypes and 3,072 crops these are 0.4 GB in bfloat16, and 0.8 GB for each temporary, of which autograd would
keep two. It keeps the logits as they are, and the backward pass computes probabilities again.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from unlabeled.nn.loss.exact import wide
from unlabeled.nn.measures import teaching
from unlabeled.nn.regions import region, varying

LARGE = 1 << 27  # logits from which on rows are taken in parts
PART = 1 << 24  # logits of a part


@varying
def sharpen(logits: Tensor, centre: Tensor, temperature: float) -> Tensor:
    """The teacher's probabilities [..., K]: softmax((logits - centre) / temperature), without gradient."""
    if _is_large(logits):
        return _sharpened(logits.detach(), centre, temperature)
    return ((logits.detach().float() - centre) / temperature).softmax(dim=-1)


def soft_cross_entropy(logits: Tensor, target: Tensor, temperature: float) -> Tensor:
    """-sum target log softmax(logits / temperature) over the last axis: [..., K] and [..., K] to [...].

    Targets need not sum to 1, have no gradient, and may lack leading axes. Uses logsumexp to save a tensor of
    log-probabilities. Few logits keep float64.
    """
    if _is_large(logits):
        return _cross_entropy(logits, target, temperature)
    scaled = wide(logits) / temperature
    return target.sum(-1) * scaled.logsumexp(-1) - (target * scaled).sum(-1)


class CrossEntropy(NamedTuple):
    """DINO's objective: the student's distributions over prototypes follow the teacher's probabilities."""

    temperature: float  # the student's

    def compare(self, student: Tensor, teacher: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss of all views, arguments as in `cross_view`, and what to log."""
        loss = cross_view(student, teacher, self.temperature)
        return loss, teaching(loss, teacher)

    def compare_hidden(self, student: Tensor, teacher: Tensor, weight: Tensor, crops: int) -> Tensor:
        """The loss at hidden patches, arguments as in `masked_patches`."""
        return masked_patches(student, teacher, weight, crops, self.temperature)


@region
def cross_view(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """Cross-entropy between the teacher at a global view and the student at every other view (DINO, equation 3).

    The mean over images and the G V - G pairs of different views.

    Args:
        student: logits [V, B, K], the G global views first, in the teacher's order.
        teacher: probabilities [G, B, K].
        temperature: the student's.
    """
    teachers, views, everyone = len(teacher), len(student), teacher.sum(0)
    across = soft_cross_entropy(student[:teachers], everyone - teacher, temperature).sum(0)
    below = soft_cross_entropy(student[teachers:], everyone, temperature).sum(0)
    return (across + below).mean() / (teachers * views - teachers)


@varying
def masked_patches(student: Tensor, teacher: Tensor, weight: Tensor, crops: int, temperature: float) -> Tensor:
    """Cross-entropy at hidden patches: mean per crop, then over all crops (iBOT equation 2, official `iBOTLoss`).

    Args:
        student, teacher: logits and probabilities [M, K] at hidden patches of all crops together.
        weight: [M], 1 over the number of hidden patches of its crop; 0 for padding rows.
        crops: number of crops; crops with nothing hidden count as 0.
        temperature: the student's.
    """
    return (soft_cross_entropy(student, teacher, temperature) * weight).sum() / crops


def _is_large(logits: Tensor) -> bool:
    """Whether logits [..., K] are so many that rows are taken in parts. A compiler fuses operations instead."""
    return not torch.compiler.is_compiling() and logits.numel() > LARGE


def _sharpened(logits: Tensor, centre: Tensor, temperature: float) -> Tensor:
    """As `sharpen`."""
    rows = logits.reshape(-1, logits.shape[-1])
    found = torch.empty(rows.shape, dtype=torch.float32, device=rows.device)
    for part, _ in _parts(len(rows), len(rows), rows.shape[1]):
        found[part] = ((rows[part].float() - centre) / temperature).softmax(dim=-1)
    return found.view(logits.shape)


def _cross_entropy(logits: Tensor, target: Tensor, temperature: float) -> Tensor:
    """As `soft_cross_entropy`: [..., K] and [..., K] to [...]."""
    rows: Tensor = _CrossEntropy.apply(logits.flatten(0, -2), target.detach().flatten(0, -2), temperature)
    return rows.view(logits.shape[:-1])


class _CrossEntropy(torch.autograd.Function):
    """Of logits [R, K], where row r has target r modulo T of [T, K]."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, target: Tensor, temperature: float) -> Tensor:
        ctx.save_for_backward(logits, target)
        ctx.temperature = temperature
        losses = []
        for rows, aims in _parts(len(logits), len(target), logits.shape[1]):
            scaled, aim = logits[rows].float() / temperature, target[aims]
            losses.append(aim.sum(-1) * scaled.logsumexp(-1) - (aim * scaled).sum(-1))
        return torch.cat(losses)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        """A row's gradient is (sum target x softmax(logits / temperature) - target) / temperature."""
        logits, target = ctx.saved_tensors
        found, scale = torch.empty_like(logits), (gradients[0] / ctx.temperature).unsqueeze(1)
        for rows, aims in _parts(len(logits), len(target), logits.shape[1]):
            aim = target[aims]
            share = (logits[rows].float() / ctx.temperature).softmax(-1)
            found[rows] = share.mul_(aim.sum(-1, keepdim=True)).sub_(aim).mul_(scale[rows])
        return found, None, None


def _parts(rows: int, targets: int, width: int) -> Iterator[tuple[slice, slice]]:
    """Slices of the rows, and of the targets that they have."""
    size = max(1, PART // width)
    for start in range(0, rows, targets):
        for first in range(0, targets, size):
            last = min(first + size, targets)
            yield slice(start + first, start + last), slice(first, last)
