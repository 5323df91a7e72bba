"""How many images of old classes are remembered, and which."""

from __future__ import annotations

import torch
from pydantic import BaseModel, Field, model_validator
from torch import Tensor

from unlabeled.errors import UserError
from unlabeled.incremental.herding import herd


class Memory(BaseModel, frozen=True, extra="forbid"):
    """Images that pass from one task to the next; with neither number there is none.

    Results with a memory that shrinks (`total`), of a fixed size for each class (`per_class`) and without one are not
    comparable.
    """

    total: int = Field(0, ge=0, description="images in all, as many of each class seen: each class's part shrinks")
    per_class: int = Field(0, ge=0, description="images of each class, whatever their number")
    replacement: bool = Field(
        True,
        description="whether herding may choose an image again, which then takes no place (iCaRL's code); false = "
        "each once, the nearest to the mean first",
    )

    @model_validator(mode="after")
    def _one_of_them(self) -> Memory:
        if self.total and self.per_class:
            raise ValueError(f"expected total or per_class, found both ({self.total}, {self.per_class})")
        return self

    @property
    def none(self) -> bool:
        """Whether nothing is remembered."""
        return not self.total and not self.per_class

    def quota(self, classes: int) -> int:
        """Images of each class after `classes` were seen."""
        return self.per_class or self.total // classes

    def check(self, classes: int) -> None:
        """Raise UserError where the memory has no place for an image of each of all classes."""
        if 0 < self.total < classes:
            raise UserError(
                f"memory.total is {self.total} for {classes} classes: less than one image of each. "
                f"Set it to at least {classes}, or memory.per_class=1."
            )

    def describe(self) -> str:
        """What results must say of it."""
        if self.none:
            return "no memory"
        return f"{self.per_class} images of each class" if self.per_class else f"{self.total} images in all"


def shrunk(memory: Tensor, labels: Tensor, most: int) -> Tensor:
    """The first `most` of each class of a memory [m] with labels [m], both class by class, best first."""
    if not len(memory):
        return memory
    starts = torch.cat([labels.new_ones(1, dtype=torch.bool), labels[1:] != labels[:-1]]).nonzero()[:, 0]
    lengths = torch.cat([starts[1:], starts.new_tensor([len(labels)])]) - starts
    rank = torch.arange(len(labels), device=labels.device) - starts.repeat_interleave(lengths)
    return memory[rank < most]


def added(features: Tensor, labels: Tensor, numbers: Tensor, old: int, most: int, replacement: bool) -> Tensor:
    """Numbers of the images of new classes to remember, class by class, best first.

    Args:
        features: [n, D] of images of all classes.
        labels: [n]; those below `old` are left out.
        numbers: [n] of the images in the training source.
        most: images of each class.
        replacement: see `herd`.
    """
    chosen = []
    for label in labels[labels >= old].unique(sorted=True).tolist():
        rows = (labels == label).nonzero()[:, 0]
        chosen.append(numbers[rows[herd(features[rows], most, replacement).to(rows.device)]])
    return torch.cat(chosen) if chosen else numbers[:0]
