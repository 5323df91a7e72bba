"""Elastic weight consolidation (Kirkpatrick et al. 2017)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from unlabeled.incremental.fisher import merged
from unlabeled.incremental.losses import classification
from unlabeled.incremental.strategy import After, Coming, Kept, Seen, Strategy


class Config(Strategy, frozen=True, extra="forbid"):
    """Pull every weight back to where it was, by how much it mattered to the tasks before (equation 3)."""

    name: Literal["ewc"] = "ewc"

    weight: float = Field(1000.0, ge=0, allow_inf_nan=False, description="of the penalty, lambda")
    max_importance: float = Field(
        1e-4, gt=0, allow_inf_nan=False, description="limit on the importance of a weight, before tasks are merged"
    )

    def loss(self, now: Seen, before: Seen | None, labels: Tensor, task: Coming, kept: Kept) -> dict[str, Tensor]:
        return {"classification": classification(now.logits, labels, task)}

    def penalty(self, parameters: Mapping[str, Tensor], task: Coming, kept: Kept) -> dict[str, Tensor]:
        """lambda sum_i F_i (theta_i - theta*_i)^2 / 2 over what has learnt before, old rows of the head included."""
        if not kept.tensors:
            return {}
        return {"penalty": self.weight * quadratic(parameters, kept)}

    def learnt(self, after: After, task: Coming, kept: Kept) -> dict[str, Tensor]:
        """Importances of the old tasks weigh as their classes among all."""
        tensors = {}
        for name, found in after.importances().items():
            weight, old = after.parameters[name].detach(), kept.tensors.get(importance(name))
            now = found.clamp(max=self.max_importance).to(weight)
            tensors[importance(name)] = now if old is None else merged(old.to(now), now, task.old / task.classes)
            tensors[anchor(name)] = weight.clone()
        return tensors


def importance(name: str) -> str:
    """What the importance of a parameter is kept as; buffers have no dots in their names."""
    return f"importance/{name.replace('.', '/')}"


def anchor(name: str) -> str:
    """What the value of a parameter at the end of the task before is kept as."""
    return f"anchor/{name.replace('.', '/')}"


def quadratic(parameters: Mapping[str, Tensor], kept: Kept) -> Tensor:
    """sum_i F_i (theta_i - theta*_i)^2 / 2; rows that a parameter did not have are not counted."""
    terms = []
    for name, parameter in parameters.items():
        before = kept.tensors.get(anchor(name))
        if before is not None:
            now = parameter if before.ndim == 0 else parameter[: len(before)]
            terms.append((kept.tensors[importance(name)] * (now - before).square()).sum() / 2)
    return torch.stack(terms).sum()
