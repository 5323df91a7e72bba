"""Losses that spread features, so that no two pictures look alike, in float32 also under autocast."""

from __future__ import annotations

import math
from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import BaseModel, Field
from torch import Tensor

from unlabeled.nn.collectives import gather_with_gradient, rank, world
from unlabeled.nn.loss.exact import exact
from unlabeled.nn.regions import region, varying


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


class CodingRate(BaseModel, frozen=True, extra="forbid"):
    """SimDINO's objective in a recipe: unit vectors of views agree, and their coding rate keeps them apart."""

    eps: float = Field(0.05, gt=0, description="precision of the coding rate: with less, small directions count more")
    weight: float = Field(1.0, ge=0, description="weight of the agreement; that of the coding rate is 1")
    of: Literal["mean", "student"] = Field(
        "mean", description="rows that are kept apart: means of the student's and the teacher's, or the student's"
    )

    def compare(self, student: Tensor, teacher: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss of unit vectors of all views [V, B, D] and the teacher's of the G first ones [G, B, D], and what to
        log: `compression`, the mean cosine; `coding_rate`; `spread`, this over that of equal rows: 1 in a collapse."""
        seen = student[: len(teacher)].float()
        rate = coding_rate((seen + teacher.float()) / 2 if self.of == "mean" else seen, self.eps)
        agreement = mean_cosine(student, teacher)
        floor = _per_row(student.shape[1] * world(), student.shape[2]) * math.log1p(student.shape[2] / self.eps) / 2
        measures = {"compression": agreement, "coding_rate": rate, "spread": rate / floor}
        return -self.weight * agreement - rate, {name: measure.detach() for name, measure in measures.items()}

    def compare_hidden(self, student: Tensor, teacher: Tensor, weight: Tensor, crops: int) -> Tensor:
        """The loss of unit vectors at hidden patches [M, D]: minus `masked_cosine`."""
        return -masked_cosine(student, teacher, weight, crops)


@region
def mean_cosine(student: Tensor, teacher: Tensor) -> Tensor:
    """The mean cosine of the teacher at a global view and the student at every other view (SimDINO's compression).

    The mean over images and pairs of different views; arguments as in `CodingRate.compare`.
    """
    unit, targets = F.normalize(student.float(), dim=-1), F.normalize(teacher.float(), dim=-1)
    teachers, views, everyone = len(targets), len(unit), targets.sum(0)
    across = (unit[:teachers] * (everyone - targets)).sum((0, 2))
    below = (unit[teachers:] * everyone).sum((0, 2))
    return (across + below).mean() / (teachers * views - teachers)


@varying
def masked_cosine(student: Tensor, teacher: Tensor, weight: Tensor, crops: int) -> Tensor:
    """The mean cosine at hidden patches [M, D], of each crop, then of all (SimDINOv2); arguments: `masked_patches`."""
    return (F.cosine_similarity(student.float(), teacher.float(), dim=-1) * weight).sum() / crops


def coding_rate(features: Tensor, eps: float) -> Tensor:
    """The coding rate of features [V, B, D], the mean over views: how many directions they fill (SimDINO's expansion).

    log det(I + D / (M eps) Z'Z) / 2 times (D + M) / (D M), where Z are the M rows of a view of all processes
    (officially of one, unless `reduce_cov`).
    """
    rows = gather_with_gradient(features.float().transpose(0, 1).contiguous())
    return _half_log_det(rows, rows.shape[2] / (len(rows) * eps)) * _per_row(len(rows), rows.shape[2])


@region
def _half_log_det(rows: Tensor, scale: float) -> Tensor:
    """log det(I + scale Z'Z) / 2 of rows Z [M, V, D] of each view, the mean over views."""
    with exact(rows):
        views = rows.transpose(0, 1)
        scatter = torch.eye(rows.shape[2], device=rows.device) + scale * (views.mT @ views)
        # without a check of the outcome, for which the host would wait
        return torch.linalg.cholesky_ex(scatter).L.diagonal(dim1=1, dim2=2).log().sum(1).mean()


def _per_row(rows: int, width: int) -> float:
    """SimDINO's factor on the coding rate of so many rows."""
    return (width + rows) / (width * rows)
