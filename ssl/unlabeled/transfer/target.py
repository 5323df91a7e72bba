"""The contract of targets: what strong views of unlabelled images are to be taken for, by the probabilities of weak
ones. Kinds are the files of `targets/`."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar

from pydantic import BaseModel
from torch import Tensor

from unlabeled.registry import ByFile


class Target(BaseModel, ABC, frozen=True, extra="forbid"):
    """The settings of a target. `name` is the name of its file.

    Attributes:
        views: weak views of each image, whose probabilities are averaged.
    """

    views: ClassVar[int] = 1
    name: str

    @abstractmethod
    def distance(self, strong: Tensor, p: Tensor) -> Tensor:
        """The loss of each image [U], from logits of its strong view [U, C] and probabilities p [U, C], which have no
        gradient."""


TARGETS = ByFile("unlabeled.transfer.targets", Target, default="hard")
