"""MAE's linear probe: a head on a frozen backbone, behind a BatchNorm without affine."""

from __future__ import annotations

from typing import Literal

from unlabeled.nn.batchnorm import BatchNorm
from unlabeled.transfer.strategy import Strategy


class Config(Strategy, frozen=True, extra="forbid"):
    """Train the head on normalised features; the normalisation is folded into the head at export."""

    name: Literal["linear"] = "linear"

    def head_norm(self, width: int) -> BatchNorm | None:
        """MAE's BatchNorm, but over all processes: officially each GPU has its own."""
        norm = BatchNorm(width, affine=False)
        norm.eps = 1e-6
        return norm
