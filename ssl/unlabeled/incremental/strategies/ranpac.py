"""RanPAC: a random projection, and ridge regression on it (McDonnell et al. 2023)."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from unlabeled.incremental.strategy import After, Closed, Coming, Kept, Seen
from unlabeled.randomness import Stream, stream

PROJECTION, RIDGE = 0, 1  # the last part of a stream's key
RIDGES = tuple(10.0**power for power in range(-8, 9))
PART = 4096  # images that are projected at once


class Config(Closed, frozen=True, extra="forbid"):
    """Solve for a linear head on a random projection. With a fixed ridge, how tasks split classes changes nothing."""

    name: Literal["ranpac"] = "ranpac"

    dim: int = Field(2000, ge=1, description="of the projection; 10,000 in the paper, whose Gram matrix has 0.8 GB")
    ridge: float | None = Field(
        None,
        gt=0,
        allow_inf_nan=False,
        description="added to the Gram matrix's diagonal; null = of 1e-8 .. 1e8, the best on a fifth of the task",
    )

    def learnt(self, after: After, task: Coming, kept: Kept) -> dict[str, Tensor]:
        """Projection W [D, M], Gram matrix [M, M], products with labels [M, classes], ridge and head [M, classes].

        The ridge is chosen on a fifth of the task's images, drawn from (seed, task).
        """
        new = after.labels >= task.old
        x, labels = after.features[new].double(), after.labels[new]
        projection = kept.tensors["projection"].to(x) if kept.tensors else self.drawn(x.shape[1], task).to(x)
        gram, products = sums(x, labels, projection, task.classes)
        if self.ridge is None:
            rng = stream(task.seed, Stream.STRATEGY, task.number, RIDGE)
            order = torch.from_numpy(rng.permutation(len(x))).to(x.device)
            ridge = chosen_ridge(x[order], labels[order], projection, task.classes)
        else:
            ridge = self.ridge
        if kept.tensors:
            gram = gram + kept.tensors["gram"].to(gram)
            products = products + F.pad(kept.tensors["products"].to(products), (0, task.new))
        return {
            "projection": projection,
            "gram": gram,
            "products": products,
            "ridge": x.new_tensor(ridge),
            "head": solved(gram, products, ridge),
        }

    def drawn(self, width: int, task: Coming) -> Tensor:
        """The projection [width, dim], standard normal, float64; of the recipe's seed alone."""
        return torch.from_numpy(stream(task.seed, Stream.STRATEGY, 0, PROJECTION).standard_normal((width, self.dim)))

    def scores(self, seen: Seen, kept: Kept) -> Tensor:
        projection = kept.tensors["projection"]
        return projected(seen.features.to(projection), projection) @ kept.tensors["head"]

    def plan(self, tasks: int) -> str:
        return f"ranpac keeps a Gram matrix of {self.dim} x {self.dim} numbers, {8e-9 * self.dim**2:.2g} GB"


def projected(features: Tensor, projection: Tensor) -> Tensor:
    """ReLU(f W): features [n, D] as they are, not of unit length, to [n, M]."""
    return (features @ projection).relu()


def sums(features: Tensor, labels: Tensor, projection: Tensor, classes: int) -> tuple[Tensor, Tensor]:
    """h' h [M, M] and h' y [M, classes] of projected features h and labels [n] as one-hot rows y."""
    dim = projection.shape[1]
    gram, products = features.new_zeros(dim, dim), features.new_zeros(dim, classes)
    for x, y in zip(features.split(PART), labels.split(PART), strict=True):
        h = projected(x, projection)
        gram += h.T @ h
        products += h.T @ F.one_hot(y, classes).to(h)
    return gram, products


def chosen_ridge(features: Tensor, labels: Tensor, projection: Tensor, classes: int) -> float:
    """Of 10^-8 .. 10^8, the ridge of the least squared error on the last fifth, fitted on the images before.

    Columns of classes that none of the images has are 0 on both sides.
    """
    fitted = int(0.8 * len(features))
    if not 0 < fitted < len(features):
        return 1.0
    x, y = features[:fitted], labels[:fitted]
    held, targets = projected(features[fitted:], projection), F.one_hot(labels[fitted:], classes).to(features)
    left, values, right = spectrum(x, y, projection, classes)
    reads = held @ left
    errors = [((reads / (values + ridge)) @ right - targets).square().mean() for ridge in RIDGES]
    return RIDGES[int(torch.stack(errors).argmin())]


def spectrum(features: Tensor, labels: Tensor, projection: Tensor, classes: int) -> tuple[Tensor, Tensor, Tensor]:
    """(L, v, R) so that the head for any ridge r is L diag(1 / (v + r)) R: [M, k], [k], [k, classes].

    From the eigenvectors of the smaller of h h' [n, n] and h' h [M, M].
    """
    if len(features) < projection.shape[1]:
        h = projected(features, projection)
        values, vectors = torch.linalg.eigh(h @ h.T)
        left, right = h.T @ vectors, vectors.T @ F.one_hot(labels, classes).to(h)
    else:
        gram, products = sums(features, labels, projection, classes)
        values, left = torch.linalg.eigh(gram)
        right = left.T @ products
    return left, values.clamp(min=0), right


def solved(gram: Tensor, products: Tensor, ridge: float) -> Tensor:
    """(G + r I)^-1 Q, [M, classes], by Cholesky.

    Where rounding leaves no such factor, by the eigenvectors of G that are more than rounding: Q has no part in others.
    """
    eye = torch.eye(len(gram), dtype=gram.dtype, device=gram.device)
    factor, failed = torch.linalg.cholesky_ex(gram + ridge * eye)
    if not int(failed):
        return torch.cholesky_solve(products, factor)
    values, vectors = torch.linalg.eigh(gram)
    real = values > len(gram) * torch.finfo(gram.dtype).eps * values[-1]
    inverse = (1 / (values + ridge)).where(real, 0.0)
    return vectors @ (inverse[:, None] * (vectors.T @ products))
