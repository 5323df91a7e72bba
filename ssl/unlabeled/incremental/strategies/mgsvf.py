"""After MgSvF: multi-grained slow against fast learning (Zhao et al. 2021). Experimental: no code was published."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import Annotated, ClassVar, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from unlabeled.incremental.heads import Cosines
from unlabeled.incremental.losses import classification
from unlabeled.incremental.strategy import After, Coming, Kept, Seen, Strategy
from unlabeled.nn.loss.exact import wide

Strength = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class Config(Strategy, frozen=True, extra="forbid"):
    """Experimental, after the abstract of MgSvF; its constants are unverified.

    Two extractors learn side by side, a slow and a fast one. In each, low frequencies of the features are held to those
    of the network before more strongly than high ones. Classes are named by the nearest mean in both spaces together.
    """

    teacher: ClassVar[bool] = True
    spaces: ClassVar[int] = 2
    linear: ClassVar[bool] = False
    own_head: ClassVar[bool] = True
    name: Literal["mgsvf"] = "mgsvf"

    strengths: tuple[Strength, ...] = Field(
        (1.0, 0.5, 0.25, 0.125), min_length=1, description="how strongly groups of frequencies are held, low to high"
    )
    slow_strength: float = Field(10.0, ge=0, allow_inf_nan=False, description="factor on them in the slow space")
    slow_rate: float = Field(
        0.1, gt=0, le=1, description="learning rate of the slow extractor as a share of the fast's"
    )
    share: float = Field(0.5, ge=0, le=1, description="of the slow space in the composed one")
    scale: float = Field(16.0, gt=0, allow_inf_nan=False, description="of the cosines that are the logits")

    def rate(self, space: int) -> float:
        return self.slow_rate if space == 0 else 1.0

    def head(self, width: int, task: Coming, before: nn.Module | None) -> nn.Module:
        """Cosines with a proxy of each class in each space: a metric loss that reads no other image of the batch."""
        shares = (self.share, 1 - self.share)
        return Cosines(width, task.classes, shares, self.scale, before if isinstance(before, Cosines) else None)

    def loss(self, now: Seen, before: Seen | None, labels: Tensor, task: Coming, kept: Kept) -> dict[str, Tensor]:
        terms = {"classification": classification(now.logits, labels, task)}
        if before is not None:
            (slow, fast), (slow_then, fast_then) = now.features.chunk(2, 1), before.features.chunk(2, 1)
            terms["slow"] = self.slow_strength * held(slow, slow_then, self.strengths)
            terms["fast"] = held(fast, fast_then, self.strengths)
        return terms

    def learnt(self, after: After, task: Coming, kept: Kept) -> dict[str, Tensor]:
        """Means [classes, D] in the composed space; an old class's is made anew where images of it are remembered."""
        composed, old = self.composed(after.features), kept.tensors.get("means")
        means = []
        for label in range(task.classes):
            mine = composed[after.labels == label]
            means.append(mine.mean(0) if len(mine) or old is None else old[label].to(composed))
        return {"means": torch.stack(means)}

    def scores(self, seen: Seen, kept: Kept) -> Tensor:
        """Minus the squared distance to each class's mean in the composed space."""
        means = kept.tensors["means"]
        return -torch.cdist(self.composed(seen.features.to(means)), means).square()

    def composed(self, features: Tensor) -> Tensor:
        """[a unit(slow), (1 - a) unit(fast)] of features of both spaces side by side [n, D]."""
        slow, fast = features.chunk(2, 1)
        return torch.cat([self.share * F.normalize(slow, dim=1), (1 - self.share) * F.normalize(fast, dim=1)], dim=1)

    def plan(self, tasks: int) -> str:
        return "mgsvf is after the paper, and experimental: no code was published, its constants are unverified"


def held(features: Tensor, before: Tensor, strengths: Sequence[float]) -> Tensor:
    """sum_q g_q mean_B |z_q - z'_q|^2 over equal groups of frequencies z of features [B, D], low to high.

    With equal strengths g it is plain distillation of the features, for the transform keeps lengths.
    """
    moved = wide(features) - wide(before.detach())
    groups = (moved @ frequencies(moved).T).square().tensor_split(len(strengths), dim=1)
    return torch.stack([g * group.sum(1).mean() for g, group in zip(strengths, groups, strict=True)]).sum()


def frequencies(like: Tensor) -> Tensor:
    """The orthonormal DCT-II [D, D] of vectors [.., D], the lowest frequency first."""
    return _waves(like.shape[-1]).to(like)


@functools.cache
def _waves(n: int) -> Tensor:
    place = torch.arange(n, dtype=torch.float64)
    waves = torch.cos(math.pi / n * (place + 0.5) * place[:, None]) * math.sqrt(2 / n)
    waves[0] /= math.sqrt(2)
    return waves
