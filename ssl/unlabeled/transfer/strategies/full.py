"""Fine-tuning of the whole network at one rate."""

from __future__ import annotations

from typing import Literal

from unlabeled.transfer.strategy import WholeNetwork


class Config(WholeNetwork, frozen=True, extra="forbid"):
    """Train everything at one rate."""

    name: Literal["full"] = "full"
