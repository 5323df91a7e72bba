"""What tells learning from collapse: detached scalars, cheap enough for every step."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


@torch.no_grad()
def feature_std(features: Tensor) -> Tensor:
    """Spread of unit vectors: std of features [B, D] per dimension, times sqrt(D): 1 when uniform, 0 when collapsed.

    SimSiam (Chen & He 2021, section 4.1) watches the same number against 1 / sqrt(D).
    """
    unit = F.normalize(features.float(), dim=-1)
    return unit.std(dim=0).mean() * unit.shape[-1] ** 0.5


@torch.no_grad()
def contrast(queries: Tensor, keys: Tensor) -> dict[str, Tensor]:
    """How pairs and strangers lie on the sphere: rows of queries and keys [B, D] with the same number are pairs.

    Returns `positive` and `negative`, mean cosines of pairs and strangers; `alignment`, the mean squared distance of
    pairs, and `uniformity`, the log of the mean of exp(-2 squared distance) of strangers (Wang & Isola 2020).
    """
    similarity = F.normalize(queries.float(), dim=1) @ F.normalize(keys.float(), dim=1).T
    pairs = similarity.diagonal().mean()
    strangers = len(similarity) * (len(similarity) - 1)
    others = ~torch.eye(len(similarity), dtype=torch.bool, device=similarity.device)
    # squared distance of unit vectors: 2 - 2 cosine
    spread = ((4 * similarity - 4).exp() * others).sum() / strangers
    return {
        "positive": pairs,
        "negative": (similarity * others).sum() / strangers,
        "alignment": 2 - 2 * pairs,
        "uniformity": spread.log(),
    }
