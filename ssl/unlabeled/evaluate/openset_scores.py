"""Scores of how well an image fits the known classes, after training and without images of other classes.

Higher = known, in all of them. Formulas as in OpenOOD (Yang et al., NeurIPS 2022). Features are [n, D], logits [n, C].
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from unlabeled.evaluate.features import Features

CHUNK_ELEMENTS = 2**24  # distances held at once
NEIGHBOURS, DIRECTIONS = 50, 256


class Head(NamedTuple):
    """A linear classifier: weight [C, D], bias [C]."""

    weight: Tensor
    bias: Tensor

    def logits(self, x: Tensor) -> Tensor:
        """Features [n, D] to logits [n, C]."""
        return x @ self.weight.T + self.bias


def msp(logits: Tensor) -> Tensor:
    """The largest softmax probability [n] (Hendrycks & Gimpel, ICLR 2017)."""
    return logits.softmax(1).amax(1)


def maxlogit(logits: Tensor) -> Tensor:
    """The largest logit [n] (Hendrycks et al., ICML 2022)."""
    return logits.amax(1)


def energy(logits: Tensor, temperature: float = 1.0) -> Tensor:
    """Minus the free energy [n], T logsumexp(logits / T) (Liu et al., NeurIPS 2020)."""
    return temperature * (logits / temperature).logsumexp(1)


def knn(train: Tensor, x: Tensor, k: int = NEIGHBOURS) -> Tensor:
    """Minus the squared distance [m] of unit features to the k-th nearest training image (Sun et al., ICML 2022).

    Args:
        train: [n, D] features of known images; k is capped at n.
        x: [m, D], of any norm.
        k: at least 1.
    """
    keys, k = F.normalize(train, dim=1), min(k, len(train))
    rows = F.normalize(x, dim=1).split(max(1, CHUNK_ELEMENTS // len(train)))
    cosines = torch.cat([(part @ keys.T).topk(k, dim=1).values[:, -1] for part in rows])
    return 2 * cosines - 2


def mahalanobis(train: Features, x: Tensor) -> Tensor:
    """Minus the least squared Mahalanobis distance [m] to a class's mean (Lee et al., NeurIPS 2018).

    One covariance for all classes, over n images, not n - 1; directions in which it vanishes do not count.

    Args:
        train: features of known images, classes from 0 on without a gap.
        x: [m, D].
    """
    return -_nearest(train, x)


def relative_mahalanobis(train: Features, x: Tensor) -> Tensor:
    """`mahalanobis` minus the same of one Gaussian of all training images [m] (Ren et al., 2021)."""
    return mahalanobis(train, x) + _nearest(Features(train.x, torch.zeros_like(train.y)), x)


def vim(head: Head, train: Tensor, x: Tensor, directions: int | None = None) -> Tensor:
    """Virtual-logit matching [m]: logsumexp(l) - a |P (f - o)| (Wang et al., CVPR 2022, section 4).

    o = -pinv(W) b; P takes the eigenvectors of the second moment of f - o beyond the first `directions`; a = mean of
    the largest logit over mean |P (f - o)|, on training images.

    Args:
        head: that gives the logits.
        train: [n, D] features of known images.
        x: [m, D].
        directions: None = 256, of features that are no wider half their width.
    """
    width = train.shape[1]
    first = (DIRECTIONS if width > DIRECTIONS else width // 2) if directions is None else directions
    origin = -torch.linalg.pinv(head.weight) @ head.bias
    centred = train - origin
    vectors = torch.linalg.eigh(centred.T @ centred / len(train)).eigenvectors
    rest = vectors[:, : max(0, width - first)]  # eigenvalues ascend
    residual = (centred @ rest).norm(dim=1).mean()
    scale = head.logits(train).amax(1).mean() / residual if residual > 0 else residual
    return energy(head.logits(x)) - scale * ((x - origin) @ rest).norm(dim=1)


def _nearest(train: Features, x: Tensor) -> Tensor:
    """The least squared Mahalanobis distance [m] of x [m, D] to the mean of a class."""
    member = F.one_hot(train.y).to(train.x.dtype)
    means = (member.T @ train.x) / member.sum(0).unsqueeze(1)
    beside = train.x - means[train.y]
    covariance = beside.T @ beside / len(beside)
    # features were float32: below its precision a direction is empty
    tolerance = len(covariance) * torch.finfo(torch.float32).eps
    inverse = torch.linalg.pinv(covariance, rtol=tolerance, hermitian=True)
    # (u - m)' S (u - m), expanded
    own, centres = ((x @ inverse) * x).sum(1, keepdim=True), means @ inverse
    return (own - 2 * x @ centres.T + (centres * means).sum(1)).clamp_min(0).amin(1)
