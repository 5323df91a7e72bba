"""Contrastive losses: each row finds its other view among the rows of all processes.

Each returns the mean over the rows of this process, in float32 also under autocast; `nt_xent` keeps float64.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from unlabeled.nn.collectives import gather_with_gradient, rank
from unlabeled.nn.loss.exact import exact, wide
from unlabeled.nn.regions import region


@region
def info_nce(queries: Tensor, keys: Tensor, offset: int, temperature: float) -> Tensor:
    """InfoNCE of queries [B, D] over keys [N, D], times 2 temperature (MoCo v3, official `contrastive_loss`).

    The keys are of all processes, in rank order; row r's positive is key offset + r: the offset is B x rank.
    """
    with exact(queries):
        logits = F.normalize(queries.float(), dim=1) @ F.normalize(keys.float(), dim=1).T / temperature
        labels = torch.arange(len(queries), device=queries.device) + offset
        return 2 * temperature * F.cross_entropy(logits, labels)


def nt_xent(a: Tensor, b: Tensor, temperature: float) -> Tensor:
    """SimCLR's symmetric loss between two views a, b [B, D] of the same images (Chen et al. 2020, equation 1).

    The positive of a row is its other view, its negatives are both views of all other images of all processes; queries
    and keys get gradients.
    """
    with exact(a):
        a, b = F.normalize(wide(a), dim=1), F.normalize(wide(b), dim=1)
        all_a, all_b = gather_with_gradient(a), gather_with_gradient(b)
        return (_nt_xent_half(a, all_a, all_b, temperature) + _nt_xent_half(b, all_b, all_a, temperature)) / 2


@region
def _nt_xent_half(queries: Tensor, own_view: Tensor, other_view: Tensor, temperature: float) -> Tensor:
    labels = torch.arange(len(queries), device=queries.device) + len(queries) * rank()
    negatives = (queries @ own_view.T / temperature).scatter(1, labels.unsqueeze(1), -torch.inf)
    return F.cross_entropy(torch.cat([queries @ other_view.T / temperature, negatives], dim=1), labels)
