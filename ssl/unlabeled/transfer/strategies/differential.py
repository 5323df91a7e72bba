"""Fine-tuning with learning rates that fall with depth."""

from __future__ import annotations

from typing import Literal

from unlabeled.transfer.strategy import ByDepth


class Config(ByDepth, frozen=True, extra="forbid"):
    """Train everything, the backbone at rates of its own (layer decay of MAE's and BEiT's fine-tuning)."""

    name: Literal["differential"] = "differential"
