"""iCaRL: incremental classifier and representation learning (Rebuffi et al. 2017)."""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from unlabeled.incremental.herding import mean_of
from unlabeled.incremental.losses import distillation
from unlabeled.incremental.strategy import After, Coming, Kept, Seen, Strategy
from unlabeled.nn.loss.exact import wide

TEMPERATURE = 2.0  # of the other objective's distillation


class Config(Strategy, frozen=True, extra="forbid"):
    """Learn with the answers of the network before as targets of old classes; name the nearest mean of exemplars."""

    teacher: ClassVar[bool] = True
    remembers: ClassVar[bool] = True
    linear: ClassVar[bool] = False  # but see `rows`
    name: Literal["icarl"] = "icarl"

    objective: Literal["sigmoid", "softmax"] = Field(
        "sigmoid", description="binary cross-entropies (the paper), or cross-entropy and distillation at T = 2 (tables)"
    )
    flips: bool = Field(True, description="whether means are of mirrored exemplars too")

    def is_ordinary(self, task: Coming) -> bool:
        return task.number == 0 and self.objective == "softmax"

    def loss(self, now: Seen, before: Seen | None, labels: Tensor, task: Coming, kept: Kept) -> dict[str, Tensor]:
        if self.objective == "sigmoid":
            return {"classification": binary(now.logits, None if before is None else before.logits, labels)}
        terms = {"classification": F.cross_entropy(wide(now.logits), labels)}
        if before is not None:
            terms["distillation"] = distillation(now.logits, before.logits, TEMPERATURE)
        return terms

    def learnt(self, after: After, task: Coming, kept: Kept) -> dict[str, Tensor]:
        """Means [classes, D] of the exemplars of all classes, unit vectors, by the network that is new."""
        memory = torch.isin(after.numbers, kept.memory.to(after.numbers.device))
        mirrored = after.mirrored().to(after.features) if self.flips else None
        means = []
        for label in range(task.classes):
            rows = memory & (after.labels == label)
            means.append(mean_of(after.features[rows], None if mirrored is None else mirrored[rows]))
        return {"means": torch.stack(means)}

    def scores(self, seen: Seen, kept: Kept) -> Tensor:
        """Minus the squared distance of the unit features to each mean."""
        means = kept.tensors["means"]
        return -torch.cdist(F.normalize(seen.features.to(means), dim=1), means).square()

    def rows(self, kept: Kept) -> Tensor:
        return kept.tensors["means"]


def binary(logits: Tensor, before: Tensor | None, labels: Tensor) -> Tensor:
    """Mean over images and outputs of the binary cross-entropy (algorithm 3).

    Targets of classes that the network `before` knows are its sigmoids, for images of old classes as well; of the
    others 1 for the label, else 0.
    """
    now = wide(logits)
    targets = F.one_hot(labels, logits.shape[1]).to(now.dtype)
    if before is not None:
        targets = torch.cat([wide(before.detach()).sigmoid().to(now.dtype), targets[:, before.shape[1] :]], dim=1)
    return F.binary_cross_entropy_with_logits(now, targets)
