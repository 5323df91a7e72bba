"""What tells learning from collapse: detached scalars, cheap enough for every step, but for `effective_rank`."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from unlabeled.nn.collectives import gather, world

# rows that an effective rank is taken of: it cannot exceed them
ROWS = 256


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
    queries, keys = F.normalize(queries.float(), dim=1), F.normalize(keys.float(), dim=1)
    # autocast rounds the product, which strangers stand and pairs, whose cosines come near 1, do not
    similarity, pairs = queries @ keys.T, (queries * keys).sum(1).mean()
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


@torch.no_grad()
def teaching(loss: Tensor, targets: Tensor) -> dict[str, Tensor]:
    """How a distillation goes, from its cross-entropy and the teacher's probabilities [..., K]; all in nats.

    Returns `teacher_entropy`, the mean entropy of a target: ln K when it says nothing; `mean_entropy`, the entropy of
    the mean target: 0 when one prototype takes everything; `kl`, what the student still lacks; `prototypes`, how many
    different ones are targets' first choice, as a share of as many as there could be.
    """
    rows = targets.flatten(0, -2)
    entropy = torch.special.entr(rows).sum(1).mean()
    chosen = rows.new_zeros(rows.shape[1]).scatter(0, rows.argmax(1), 1.0).sum()
    return {
        "teacher_entropy": entropy,
        "mean_entropy": torch.special.entr(rows.mean(0)).sum(),
        "kl": loss.detach() - entropy,
        "prototypes": chosen / min(rows.shape),
    }


@torch.no_grad()
def effective_rank(features: Tensor) -> float:
    """How many dimensions features [B, D] of all processes use: exp of the entropy of their singular values.

    Roy & Vetterli 2007; not centred, as in RankMe (Garrido et al. 2023): 1 when all rows are alike, min(B, D) when all
    directions are used alike. Of at most `ROWS` rows; waits for the device. NaN when a feature is not finite.
    """
    return spectral_rank(gather(features[: max(1, ROWS // world())]).cpu())


@torch.no_grad()
def spectral_rank(features: Tensor) -> float:
    """`effective_rank` of these features [M, D] and no others, all of them."""
    rows = features.double()
    # both products have the same eigenvalues but for zeros
    gram = rows @ rows.T if len(rows) < rows.shape[1] else rows.T @ rows
    if not gram.isfinite().all():
        return math.nan
    values = torch.linalg.eigvalsh(gram).clamp_min(0).sqrt()
    return torch.special.entr(values / values.sum()).sum().exp().item()
