"""Quality of features without labels: detached scalars for every step, then measures of whole data sets in float64."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from unlabeled.nn.collectives import gather, world
from unlabeled.nn.regions import region

ROWS = 256  # of features for an effective rank, which cannot exceed their number
RANK_EPSILON = 1e-7  # RankMe's and LiDAR's, added to shares
LIDAR_DELTA = 1e-4
CHUNK_ELEMENTS = 2**23  # pairs held at once: 64 MiB


@torch.no_grad()
@region
def feature_std(features: Tensor) -> Tensor:
    """Std of unit vectors [B, D] per dimension x sqrt(D): 1 when uniform, 0 when collapsed (SimSiam, section 4.1)."""
    unit = F.normalize(features.float(), dim=-1)
    return unit.std(dim=0).mean() * unit.shape[-1] ** 0.5


@torch.no_grad()
@region
def contrast(queries: Tensor, keys: Tensor) -> dict[str, Tensor]:
    """Similarity of positive and negative pairs: rows of queries and keys [B, D] with the same index are positive.

    Returns `positive` and `negative`, mean cosines; `alignment`, the mean squared distance of positive pairs;
    `uniformity`, the log of the mean of exp(-2 squared distance) of negative pairs (Wang & Isola 2020).
    """
    queries, keys = F.normalize(queries.float(), dim=1), F.normalize(keys.float(), dim=1)
    # autocast rounds the product: too much for positive pairs, whose cosines come near 1
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
@region
def teaching(loss: Tensor, targets: Tensor) -> dict[str, Tensor]:
    """Progress of a distillation, from its cross-entropy and the teacher's probabilities [..., K]; in nats.

    Returns `teacher_entropy`, the mean entropy of a target: ln K when uniform; `mean_entropy`, the entropy of the mean
    target: 0 when one prototype takes everything; `kl`, the divergence of the student from the teacher; `prototypes`,
    the number of prototypes that are the argmax of a target, as a share of the largest possible.
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
    """Effective rank of features [B, D] of all processes: exp of the entropy of their singular values.

    Roy & Vetterli 2007; not centred, as in RankMe (Garrido et al. 2023): 1 when all rows are equal, min(B, D) when all
    directions are used equally. Takes at most `ROWS` rows; syncs with the device. NaN when a feature is not finite.
    """
    return spectral_rank(gather(features[: max(1, ROWS // world())]).cpu())


@torch.no_grad()
def spectral_rank(features: Tensor, epsilon: float = 0.0) -> float:
    """`effective_rank` of all of these features [M, D], of this process alone.

    It is RankMe (Garrido et al. 2023, equation 1) with `epsilon` = `RANK_EPSILON`, added to each value's share.
    """
    rows = features.double()
    # both products have the same eigenvalues, zeros aside
    gram = rows @ rows.T if len(rows) < rows.shape[1] else rows.T @ rows
    if not gram.isfinite().all():
        return math.nan
    return _perplexity(torch.linalg.eigvalsh(gram).clamp_min(0).sqrt(), epsilon)


def _perplexity(values: Tensor, epsilon: float) -> float:
    """exp of the entropy of values [K], none negative, as shares of their sum."""
    shares = values / values.sum() + epsilon
    return torch.special.entr(shares).sum().exp().item()


@torch.no_grad()
def lidar(views: Tensor, delta: float = LIDAR_DELTA, epsilon: float = RANK_EPSILON) -> float:
    """LiDAR (Thilak et al. 2024, section 4): the number of directions that separate images better than their own views.

    The effective rank of Sw^-1/2 Sb Sw^-1/2, where the classes of between and within scatter are the n images and their
    samples the q views [n, q, D]: at most min(D, n - 1). NaN when a feature is not finite, or all images are equal.
    `delta` is added to the diagonal of Sw, `epsilon` to each eigenvalue's share of their sum.
    """
    rows = views.double()
    means = rows.mean(1)
    apart, beside = means - means.mean(0), (rows - means.unsqueeze(1)).flatten(0, 1)
    between = apart.T @ apart / len(apart)
    within = beside.T @ beside / len(beside)
    within.diagonal().add_(delta)
    if not (between + within).isfinite().all():
        return math.nan
    # with L L' = Sw, L^-1 Sb L'^-1 has the same eigenvalues as Sw^-1/2 Sb Sw^-1/2
    root = torch.linalg.cholesky(within)
    half = torch.linalg.solve_triangular(root, between, upper=False)
    whitened = torch.linalg.solve_triangular(root, half.T, upper=False)
    return _perplexity(torch.linalg.eigvalsh(whitened).clamp_min(0), epsilon)


@torch.no_grad()
def alignment(views: Tensor) -> float:
    """Mean squared distance between two views of an image on the unit sphere, in [0, 4] (Wang & Isola 2020, eq. 3).

    The mean is over all pairs of the q >= 2 views [n, q, D] of each of n images.
    """
    unit, q = F.normalize(views.double(), dim=-1), views.shape[1]
    # over i and j: the sum of |f_i - f_j|^2 is 2 q sum |f|^2 - 2 |sum f|^2
    total = 2 * q * unit.square().sum((1, 2)) - 2 * unit.sum(1).square().sum(1)
    return total.mean().clamp_min(0).item() / (q * (q - 1))


@torch.no_grad()
def uniformity(features: Tensor, t: float = 2.0) -> float:
    """log of the mean of exp(-t d^2) over all pairs of different rows of features [n, D] on the unit sphere.

    Wang & Isola 2020, equation 4: 0 when all are equal, about -2 t when they are uniform in many dimensions.
    """
    unit = F.normalize(features.double(), dim=1)
    total = unit.new_zeros(())
    for rows in unit.split(max(1, CHUNK_ELEMENTS // len(unit))):
        total += (2 * t * (rows @ unit.T - 1)).exp().sum()
    # subtract the pair of each row with itself
    own = (2 * t * (unit.square().sum(1) - 1)).exp().sum()
    return ((total - own) / (len(unit) * (len(unit) - 1))).log().item()


@torch.no_grad()
def linear_cka(x: Tensor, y: Tensor, unbiased: bool = False) -> float:
    """Similarity of two sets of features of the same images: linear CKA (Kornblith et al. 2019, section 3).

    1 for features [n, D] and [n, E] that differ by a rotation and a scale, 0 without linear relation; NaN when one of
    them is constant or not finite. The `unbiased` estimate of HSIC (Song et al. 2012, equation 5) does not grow with
    D / n; it needs four images or more.
    """
    hsic = _unbiased_hsic if unbiased else _hsic
    x, y = (part.double() - part.double().mean(0) for part in (x, y))
    product = hsic(x, x) * hsic(y, y)
    return (hsic(x, y) / product.sqrt()).item() if product > 0 else math.nan


def _hsic(x: Tensor, y: Tensor) -> Tensor:
    """tr(K L) of linear kernels of centred features, without the factor (n - 1)^-2."""
    return (x.T @ y).square().sum()


def _unbiased_hsic(x: Tensor, y: Tensor) -> Tensor:
    """HSIC of linear kernels with zero diagonals, without the factor 1 / (n (n - 3)); makes no n x n matrix."""
    n = len(x)
    own_x, own_y = x.square().sum(1), y.square().sum(1)
    # row sums of both kernels without their diagonals
    sums_x, sums_y = x @ x.sum(0) - own_x, y @ y.sum(0) - own_y
    trace = _hsic(x, y) - own_x @ own_y
    return trace + sums_x.sum() * sums_y.sum() / ((n - 1) * (n - 2)) - 2 / (n - 2) * (sums_x @ sums_y)
