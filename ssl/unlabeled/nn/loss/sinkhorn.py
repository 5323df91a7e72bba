"""Sinkhorn-Knopp: a teacher's probabilities that use all prototypes equally over the rows of all processes."""

from __future__ import annotations

import torch
from torch import Tensor

from unlabeled.nn.collectives import max_over_processes, sum_over_processes
from unlabeled.nn.regions import varying


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
