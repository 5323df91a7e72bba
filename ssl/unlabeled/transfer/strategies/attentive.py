"""An attentive probe of a frozen backbone."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from unlabeled.backbone.encoder import Encoder
from unlabeled.transfer.network import ClassifierPool
from unlabeled.transfer.strategy import Strategy


class Config(Strategy, frozen=True, extra="forbid"):
    """Train a cross-attention pooling with a learnt query, and the head."""

    own_pooling: ClassVar[bool] = True
    name: Literal["attentive"] = "attentive"

    def start_(self, model: Any, family: type[Encoder], head: tuple[str, ...], new: tuple[str, ...]) -> None:
        """See `Strategy`; a pooling by attention that the encoder has learns on."""
        super().start_(model, family, head, (*new, "attn_pool."))

    def pooling(self, pool: ClassifierPool) -> ClassifierPool:
        if pool not in ("cls", "attention"):
            raise ValueError(f"attentive pools by attention: leave pool out, found {pool}")
        return "attention"
