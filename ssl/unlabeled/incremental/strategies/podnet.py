"""PODNet: pooled outputs distillation (Douillard et al. 2020)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from unlabeled.incremental.heads import LocalSimilarity
from unlabeled.incremental.strategy import HEAD, Balanced, Coming, Kept, Seen, Strategy
from unlabeled.look.clusters import kmeans
from unlabeled.nn.loss.exact import wide
from unlabeled.randomness import Stream, stream

PROXIES = 2  # the last part of a stream's key


class Config(Strategy, frozen=True, extra="forbid"):
    """Hold features and the pooled maps of all stages where they were, with several proxies of each class."""

    teacher: ClassVar[bool] = True
    maps: ClassVar[bool] = True
    remembers: ClassVar[bool] = True
    linear: ClassVar[bool] = False
    own_head: ClassVar[bool] = True
    reads_first: ClassVar[bool] = True
    name: Literal["podnet"] = "podnet"

    proxies: int = Field(10, ge=1, description="of each class")
    flat: float = Field(1.0, ge=0, allow_inf_nan=False, description="weight of the features' distillation; ImageNet 10")
    spatial: float = Field(3.0, ge=0, allow_inf_nan=False, description="weight of the maps' distillation; ImageNet 8")
    balanced_epochs: float = Field(20.0, ge=0, description="epochs of the head alone on a balanced set; 0 = none")
    balanced_lr: float = Field(
        0.1, gt=0, allow_inf_nan=False, description="their base_lr: 0.05 at a batch of 128; ImageNet 0.04"
    )

    @property
    def balanced(self) -> Balanced | None:
        return Balanced(epochs=self.balanced_epochs, base_lr=self.balanced_lr) if self.balanced_epochs else None

    def head(self, width: int, task: Coming, before: nn.Module | None) -> nn.Module:
        return LocalSimilarity(width, task.new, self.proxies, before if isinstance(before, LocalSimilarity) else None)

    def begun(self, head: nn.Module, features: Tensor, labels: Tensor, task: Coming) -> None:
        """Draw the proxies of new classes: centres of each one's unit features, as long as the old ones are."""
        assert isinstance(head, LocalSimilarity)
        if head.known is None:  # the first task's are random
            return
        with torch.no_grad():
            length = head.known.norm(dim=1).mean()
            for k in range(task.new):
                mine = F.normalize(features[labels == task.old + k].double(), dim=1)
                rng = stream(task.seed, Stream.STRATEGY, task.number, PROXIES, k)
                cluster = kmeans(mine, self.proxies, rng)
                found = [mine[cluster == c].mean(0) for c in range(int(cluster.max()) + 1)]
                centres = torch.stack([found[p % len(found)] for p in range(self.proxies)])
                head.coming[k * self.proxies : (k + 1) * self.proxies] = (length * centres).to(head.coming)

    def resting(self, name: str, task: Coming) -> bool:
        """Whether it is the proxies of old classes, which the balanced training alone moves."""
        return name == f"{HEAD}known"

    def loss(self, now: Seen, before: Seen | None, labels: Tensor, task: Coming, kept: Kept) -> dict[str, Tensor]:
        terms = {"classification": nca(now.logits, labels)}
        if before is not None:
            growth = (task.classes / task.new) ** 0.5
            away = 1 - F.cosine_similarity(wide(now.features), wide(before.features.detach()), dim=1)
            terms["flat"] = self.flat * growth * away.mean()
            terms["spatial"] = self.spatial * growth * spatial(now.maps, before.maps)
        return terms


def nca(similarities: Tensor, labels: Tensor) -> Tensor:
    """Mean over images of -(s_y - m) + log(1 + sum_(j != y) exp(s_j - m)), m = max_j s_j.

    Of scaled similarities [B, classes]. The published margin is taken from all similarities, which changes nothing.
    """
    s = wide(similarities)
    s = s - s.amax(1, keepdim=True)
    right = s.gather(1, labels[:, None])
    wrong = s.scatter(1, labels[:, None], 0.0)  # exp(0) is the 1
    return (wrong.logsumexp(1) - right[:, 0]).mean()


def spatial(maps: Sequence[Tensor], before: Sequence[Tensor]) -> Tensor:
    """Mean over maps [B, C, h, w] of how far `pooled` ones are apart (equations 4 and 5)."""
    pairs = zip(maps, before, strict=True)
    return torch.stack([apart(pooled(now), pooled(then.detach())) for now, then in pairs]).mean()


def pooled(x: Tensor) -> Tensor:
    """Squares of a map [B, C, h, w] summed over its columns, and over its rows: [B, C (h + w)]."""
    squares = wide(x).square()
    return torch.cat([squares.sum(3).flatten(1), squares.sum(2).flatten(1)], dim=1)


def apart(x: Tensor, y: Tensor) -> Tensor:
    """Mean over images of the distance of unit vectors [B, n]."""
    return (F.normalize(x, dim=1) - F.normalize(y, dim=1)).norm(dim=1).mean()
