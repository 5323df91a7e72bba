"""Nearest class mean on features that nothing changes: SimpleCIL (Zhou et al. 2023) and FeCAM (Goswami et al. 2023)."""

from __future__ import annotations

from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from unlabeled.errors import UserError
from unlabeled.incremental.strategy import After, Closed, Coming, Kept, Seen

Share = Annotated[float, Field(ge=0, allow_inf_nan=False)]
PART = 4096  # images whose second moments are summed at once


class Config(Closed, frozen=True, extra="forbid"):
    """Name the class whose mean is nearest. Classes never touch each other, so how tasks split them changes nothing."""

    name: Literal["ncm"] = "ncm"

    metric: Literal["cosine", "mahalanobis"] = Field(
        "cosine", description="angle to the mean of raw features, or distance by a covariance of each class (FeCAM)"
    )
    shrink: tuple[Share, Share] = Field(
        (1.0, 0.0),
        description="share of the mean variance and of the mean covariance that is added to a covariance: 1, 0 for "
        "pretrained ViTs, 1, 1 for CNNs trained on the first task; mahalanobis alone",
    )
    power: float = Field(
        1.0, gt=0, le=1, description="to which features are raised (Tukey); 0.5 for those CNNs; mahalanobis alone"
    )

    def learnt(self, after: After, task: Coming, kept: Kept) -> dict[str, Tensor]:
        """Images of each class, sums of features and, of unit features, of their products: float64.

        Raises UserError where the covariance of a class has no inverse.
        """
        x = after.features if self.metric == "cosine" else self.unit(after.features)
        counts, sums, moments = [], [], []
        for label in range(task.old, task.classes):
            mine = x[after.labels == label].double()
            counts.append(len(mine))
            sums.append(mine.sum(0))
            if self.metric == "mahalanobis":
                moments.append(torch.stack([part.T @ part for part in mine.split(PART)]).sum(0))
                self.check(moments[-1], sums[-1], len(mine), label)
        new = {"counts": torch.tensor(counts, device=x.device), "sums": torch.stack(sums)}
        if moments:
            new["moments"] = torch.stack(moments)
        return {name: torch.cat([kept.tensors[name].to(t), t]) if kept.tensors else t for name, t in new.items()}

    def unit(self, features: Tensor) -> Tensor:
        """Features [n, D] raised to the power, as unit vectors. Raises UserError for a root of what is below 0."""
        if self.power != 1 and (least := float(features.min())) < 0:
            raise UserError(
                f"strategy.power is {self.power:g}, and features go down to {least:.3g}: only those of a network that "
                "ends in a ReLU have roots. Set strategy.power=1."
            )
        return F.normalize(features**self.power, dim=1)

    def scores(self, seen: Seen, kept: Kept) -> Tensor:
        """Cosines, or minus the squared Mahalanobis distances."""
        x = seen.features.to(kept.tensors["sums"])
        if self.metric == "cosine":
            return F.normalize(x, dim=1) @ self.means(kept).T
        unit, names = self.unit(x), ("sums", "counts", "moments")
        classes = zip(*(kept.tensors[name] for name in names), strict=True)
        return torch.stack([-self.distance(unit, *one) for one in classes], dim=1)

    def distance(self, unit: Tensor, total: Tensor, count: Tensor, moments: Tensor) -> Tensor:
        """Squared distances [B] of unit features [B, D] to the mean of a class, by its correlation matrix."""
        factor = torch.linalg.cholesky(self.correlation(moments, total, count))
        return torch.linalg.solve_triangular(factor, (unit - total / count).T, upper=False).square().sum(0)

    def correlation(self, moments: Tensor, total: Tensor, count: Tensor | int) -> Tensor:
        """The correlation matrix [D, D] of the shrunk covariance of a class."""
        return normalised(shrunk(covariance(moments, total, count), self.shrink))

    def check(self, moments: Tensor, total: Tensor, count: int, label: int) -> None:
        """Raise UserError where the images of a class, in the order of classes, do not suffice for a covariance."""
        spread = float(moments.trace() - total.square().sum() / max(1, count))
        if count < 2 or spread < 1e-12 * float(moments.trace()):
            raise UserError(
                f"class {label}, in the order in which they come, has {count} images, or they do not differ, "
                "expected at least 2 for a covariance. Set strategy.metric=cosine, or add images."
            )
        if int(torch.linalg.cholesky_ex(self.correlation(moments, total, count))[1]):
            raise UserError(
                f"strategy.shrink is {list(self.shrink)}, which leaves the covariance of class {label}, in the order "
                "in which they come, without an inverse. Raise the first number: 1 is usual."
            )

    def means(self, kept: Kept) -> Tensor:
        """Directions of the class means [classes, D]."""
        return F.normalize(kept.tensors["sums"], dim=1)

    def rows(self, kept: Kept) -> Tensor | None:
        return self.means(kept) if self.metric == "cosine" else None


def covariance(moments: Tensor, total: Tensor, count: Tensor | int) -> Tensor:
    """The covariance [D, D], n - 1 below, of n vectors with sum [D] and sum of products [D, D]."""
    return (moments - torch.outer(total, total) / count) / (count - 1)


def shrunk(covariance: Tensor, weights: tuple[float, float]) -> Tensor:
    """S + a mean(diagonal) I + b mean(the rest) (1 - I) for weights (a, b)."""
    size = len(covariance)
    eye = torch.eye(size, dtype=covariance.dtype, device=covariance.device)
    variance = covariance.diagonal().mean()
    rest = (covariance.sum() - covariance.diagonal().sum()) / max(1, size * (size - 1))
    return covariance + weights[0] * variance * eye + weights[1] * rest * (1 - eye)


def normalised(covariance: Tensor) -> Tensor:
    """The correlation matrix of a covariance."""
    deviation = covariance.diagonal().sqrt()
    return covariance / torch.outer(deviation, deviation)
