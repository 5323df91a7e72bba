"""Losses as pure functions of tensors, in float32 also under autocast.

Each returns the mean over the rows of this process. Losses that compare rows compare them with the rows of all
processes; docstrings say where the official code stays within one GPU.

Over many prototypes rows are taken a few at a time, so that no temporary is as large as the logits in float32. Of
65,536 prototypes and 3,072 crops these are 0.4 GB in bfloat16, and 0.8 GB for each temporary, of which autograd would
keep two. It keeps the logits as they are, and the backward pass computes probabilities again.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from unlabeled.nn.collectives import gather_with_gradient, max_over_processes, rank, sum_over_processes
from unlabeled.nn.regions import region, varying

LARGE = 1 << 27  # logits from which on rows are taken in parts
PART = 1 << 24  # logits of a part


def _exact(x: Tensor) -> AbstractContextManager[None]:
    """Switch autocast off: products in float32."""
    # the meta device, on which plans are made, has no autocast
    return nullcontext() if x.is_meta else torch.autocast(x.device.type, enabled=False)


@region
def info_nce(queries: Tensor, keys: Tensor, offset: int, temperature: float) -> Tensor:
    """InfoNCE of queries [B, D] over keys [N, D], times 2 temperature (MoCo v3, official `contrastive_loss`).

    The keys are of all processes, in rank order; row r's positive is key offset + r: the offset is B x rank.
    """
    with _exact(queries):
        logits = F.normalize(queries.float(), dim=1) @ F.normalize(keys.float(), dim=1).T / temperature
        labels = torch.arange(len(queries), device=queries.device) + offset
        return 2 * temperature * F.cross_entropy(logits, labels)


def nt_xent(a: Tensor, b: Tensor, temperature: float) -> Tensor:
    """SimCLR's symmetric loss between two views a, b [B, D] of the same images (Chen et al. 2020, equation 1).

    The positive of a row is its other view, its negatives are both views of all other images of all processes; queries
    and keys get gradients.
    """
    with _exact(a):
        a, b = F.normalize(a.float(), dim=1), F.normalize(b.float(), dim=1)
        all_a, all_b = gather_with_gradient(a), gather_with_gradient(b)
        return (_nt_xent_half(a, all_a, all_b, temperature) + _nt_xent_half(b, all_b, all_a, temperature)) / 2


@region
def _nt_xent_half(queries: Tensor, own_view: Tensor, other_view: Tensor, temperature: float) -> Tensor:
    labels = torch.arange(len(queries), device=queries.device) + len(queries) * rank()
    negatives = (queries @ own_view.T / temperature).scatter(1, labels.unsqueeze(1), -torch.inf)
    return F.cross_entropy(torch.cat([queries @ other_view.T / temperature, negatives], dim=1), labels)


@varying
def sharpen(logits: Tensor, centre: Tensor, temperature: float) -> Tensor:
    """The teacher's probabilities [..., K]: softmax((logits - centre) / temperature), without gradient."""
    if _is_large(logits):
        return _sharpened(logits.detach(), centre, temperature)
    return ((logits.detach().float() - centre) / temperature).softmax(dim=-1)


def soft_cross_entropy(logits: Tensor, target: Tensor, temperature: float) -> Tensor:
    """-sum target log softmax(logits / temperature) over the last axis: [..., K] and [..., K] to [...].

    Targets need not sum to 1, have no gradient, and may lack leading axes. Uses logsumexp to save a tensor of
    log-probabilities.
    """
    if _is_large(logits):
        return _cross_entropy(logits, target, temperature)
    scaled = logits.float() / temperature
    return target.sum(-1) * scaled.logsumexp(-1) - (target * scaled).sum(-1)


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


@torch.no_grad()
def sinkhorn(logits: Tensor, temperature: float, iterations: int = 3, valid: Tensor | None = None) -> Tensor:
    """Teacher probabilities [B, K] that use all prototypes equally over the global batch (Sinkhorn-Knopp; DINOv2).

    Official `sinkhorn_knopp_teacher` without its divisions by B, K and the total, which cancel. Subtracting the largest
    logit of every prototype first cancels too, and keeps exp finite and every prototype in use.

    Args:
        logits, temperature: the teacher's; logits [B, K] without a centre.
        iterations: of normalising prototypes, then samples.
        valid: [B] bool; other rows are padding, and become zeros.
    """
    scores, largest = _scores(logits, temperature, valid)
    scores, totals = _below(scores, max_over_processes(largest))
    for _ in range(iterations):
        scores, totals = _balanced(scores, sum_over_processes(totals))
    return scores


@varying
def _scores(logits: Tensor, temperature: float, valid: Tensor | None) -> tuple[Tensor, Tensor]:
    """Scaled logits [B, K], rows that are not valid at -inf, and the largest of each prototype [K]."""
    scores = logits.float() / temperature
    if valid is not None:
        scores = scores.masked_fill(~valid.unsqueeze(1), -torch.inf)
    return scores, scores.amax(0)


@varying
def _below(scores: Tensor, largest: Tensor) -> tuple[Tensor, Tensor]:
    """exp(scores - largest) [B, K], and its sum over rows [K]."""
    # without any valid row there is no largest logit
    scores = (scores - largest.clamp_min(torch.finfo(scores.dtype).min)).exp()
    return scores, scores.sum(0)


@varying
def _balanced(scores: Tensor, totals: Tensor) -> tuple[Tensor, Tensor]:
    """Scores [B, K] over the totals of prototypes [K], then over those of rows, and their sum over rows [K]."""
    tiny = torch.finfo(scores.dtype).tiny
    scores = scores / totals.clamp_min(tiny)
    scores = scores / scores.sum(1, keepdim=True).clamp_min(tiny)
    return scores, scores.sum(0)


def koleo(features: Tensor, eps: float = 1e-8) -> Tensor:
    """Kozachenko-Leonenko entropy estimator: spreads features [B, D] over the sphere (DINOv2, section 4).

    -mean log of the distance to the nearest neighbour among the rows of all processes (officially of one GPU). Both
    points get gradients.
    """
    with _exact(features):
        x = F.normalize(features.float(), dim=1, eps=eps)
        everyone = gather_with_gradient(x)
        itself = torch.arange(len(x), device=x.device) + len(x) * rank()
        similarity = (x @ everyone.T).detach()
        nearest = similarity.scatter(1, itself.unsqueeze(1), -1.0).argmax(1)
        return -(F.pairwise_distance(x, everyone[nearest], eps=eps) + eps).log().mean()


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
