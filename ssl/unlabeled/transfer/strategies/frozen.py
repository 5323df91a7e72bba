"""A head on a frozen backbone."""

from __future__ import annotations

from typing import Literal

from unlabeled.transfer.strategy import Strategy


class Config(Strategy, frozen=True, extra="forbid"):
    """Train the head alone."""

    name: Literal["frozen"] = "frozen"
