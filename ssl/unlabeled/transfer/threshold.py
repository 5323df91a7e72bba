"""The contract of thresholds: which unlabelled images a classifier learns from, by how sure it is of each. Kinds are
the files of `thresholds/`."""

from __future__ import annotations

from abc import ABC, abstractmethod

from pydantic import BaseModel
from torch import Tensor, nn

from unlabeled.registry import ByFile


class Gate(nn.Module, ABC):
    """A threshold at work. What it remembers are buffers, the same on every process."""

    @abstractmethod
    def forward(self, p: Tensor) -> Tensor:
        """Whether each image passes [U] bool, by the probabilities of its classes p [U, C], which have no gradient.

        In training averages are updated first, over the images of all processes.
        """

    def terms(self, strong: Tensor, passed: Tensor) -> dict[str, Tensor]:
        """Named terms to add to the loss, from logits of strong views [U, C] and the images that `passed` [U] bool."""
        return {}

    def measures(self) -> dict[str, Tensor]:
        """What it remembers, as scalars to log."""
        return {}


class Threshold(BaseModel, ABC, frozen=True, extra="forbid"):
    """The settings of a threshold. `name` is the name of its file."""

    name: str

    @property
    def crosses(self) -> bool:
        """Whether the loss of an image depends on others of its batch."""
        return False

    @abstractmethod
    def build(self, classes: int) -> Gate:
        """The threshold for so many classes, before the first step."""

    @abstractmethod
    def when_none_pass(self) -> str:
        """Advice where hardly an image passes."""

    @abstractmethod
    def when_one_class(self) -> str:
        """Advice where all images are taken for one class."""


THRESHOLDS = ByFile("unlabeled.transfer.thresholds", Threshold, default="adaptive")
