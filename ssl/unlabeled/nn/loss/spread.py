"""Losses that spread features, so that no two pictures look alike, in float32 also under autocast."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from unlabeled.nn.collectives import gather_with_gradient, rank
from unlabeled.nn.loss.exact import exact


def koleo(features: Tensor, eps: float = 1e-8, neighbours: int = 1) -> Tensor:
    """Kozachenko-Leonenko entropy estimator: spreads features [B, D] over the sphere (DINOv2, section 4).

    -mean log of the distance to the nearest neighbours among the rows of all processes (officially of one GPU in
    DINOv2, of all in DINOv3), each pair counted. Both points get gradients.
    """
    with exact(features):
        x = F.normalize(features.float(), dim=1, eps=eps)
        everyone = gather_with_gradient(x)
        itself = torch.arange(len(x), device=x.device) + len(x) * rank()
        similarity = (x @ everyone.T).detach()
        similarity = similarity.scatter(1, itself.unsqueeze(1), -1.0)
        if neighbours == 1:
            nearest = similarity.argmax(1)
        else:
            nearest = similarity.topk(max(1, min(neighbours, len(everyone) - 1)), 1).indices.flatten()
            x = x.repeat_interleave(len(nearest) // len(x), 0)
        return -(F.pairwise_distance(x, everyone[nearest], eps=eps) + eps).log().mean()
