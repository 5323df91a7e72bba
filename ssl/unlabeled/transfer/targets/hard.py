"""Pseudo-labels: the likeliest class of the weak view (FixMatch, FreeMatch)."""

from __future__ import annotations

from typing import Literal

import torch.nn.functional as F
from torch import Tensor

from unlabeled.transfer.target import Target


class Config(Target, frozen=True, extra="forbid"):
    """Cross-entropy with the likeliest class."""

    name: Literal["hard"] = "hard"

    def distance(self, strong: Tensor, p: Tensor) -> Tensor:
        return F.cross_entropy(strong, p.argmax(-1), reduction="none")
