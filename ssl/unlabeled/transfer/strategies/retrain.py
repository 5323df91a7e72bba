"""A new head on a classifier that was fine-tuned before (the second stage of decoupled training, Kang et al. 2020)."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from unlabeled.backbone.encoder import Encoder
from unlabeled.transfer.network import ClassifierPool
from unlabeled.transfer.strategy import Strategy


class Config(Strategy, frozen=True, extra="forbid"):
    """Replace the head of a classifier and train it alone; the pooling stays the classifier's."""

    from_classifier: ClassVar[bool] = True
    own_pooling: ClassVar[bool] = True
    name: Literal["retrain"] = "retrain"

    def start_(self, model: Any, family: type[Encoder], head: tuple[str, ...], new: tuple[str, ...]) -> None:
        super().start_(model, family, head, head)  # pooling and norm are trained already

    def pooling(self, pool: ClassifierPool) -> ClassifierPool:
        if pool != "cls":
            raise ValueError(f"retrain pools as its classifier was trained: leave pool out, found {pool}")
        return pool
