"""DER: dynamically expandable representation (Yan et al. 2021)."""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from unlabeled.incremental.strategy import Balanced, Coming, Kept, Seen, Strategy
from unlabeled.nn.loss.exact import wide


class Config(Strategy, frozen=True, extra="forbid"):
    """Freeze what was learnt, and learn each task with a further extractor; a head on all of them names the classes.

    The masks and the pruning of the paper were never published: the network grows with every task.
    """

    extends: ClassVar[bool] = True
    remembers: ClassVar[bool] = True
    linear: ClassVar[bool] = False
    own_head: ClassVar[bool] = True
    name: Literal["der"] = "der"

    extend: Literal["copy", "lora"] = Field(
        "copy", description="what a task adds: a copy of the last extractor, or low-rank matrices beside its layers"
    )
    reuse: bool = Field(False, description="whether the head keeps its old rows and columns, instead of being new")
    align: bool = Field(
        False, description="scale new rows of the head to the length of old ones, instead of training it once more"
    )
    balanced_epochs: float = Field(50.0, gt=0, description="epochs of a new head alone on a balanced set")
    balanced_lr: float = Field(0.1, gt=0, allow_inf_nan=False, description="their base_lr: 0.05 at a batch of 128")
    temperature: float = Field(
        5.0, gt=0, allow_inf_nan=False, description="that divides the logits in it; 1 for ImageNet"
    )

    @property
    def balanced(self) -> Balanced | None:
        if self.align:
            return None
        return Balanced(epochs=self.balanced_epochs, base_lr=self.balanced_lr, anew=True, temperature=self.temperature)

    def head(self, width: int, task: Coming, before: nn.Module | None) -> nn.Module:
        """A linear head without bias on the features of all extractors, oldest first."""
        head = drawn(width, task.classes)
        if self.reuse and isinstance(before, nn.Linear):
            with torch.no_grad():
                head.weight[: task.old, : before.in_features] = before.weight
        return head

    def auxiliary(self, width: int, task: Coming) -> nn.Module | None:
        """A head that tells the new classes from each other and from any old one, which is its output 0."""
        return drawn(width, task.new + 1) if task.old else None

    def loss(self, now: Seen, before: Seen | None, labels: Tensor, task: Coming, kept: Kept) -> dict[str, Tensor]:
        terms = {"classification": F.cross_entropy(wide(now.logits), labels)}
        if now.auxiliary is not None:
            terms["auxiliary"] = F.cross_entropy(wide(now.auxiliary), (labels - task.old + 1).clamp(min=0))
        return terms

    def ended(self, head: nn.Module, task: Coming) -> None:
        """Align the rows of new classes with those of old ones where that is asked for (Zhao et al. 2020)."""
        if self.align and task.old:
            assert isinstance(head, nn.Linear)
            with torch.no_grad():
                head.weight[task.old :] *= alignment(head.weight, task.old)

    def plan(self, tasks: int) -> str:
        grown = f"{tasks} backbones" if self.extend == "copy" else f"a backbone and {tasks - 1} low-rank additions"
        return f"der grows with every task: {grown} at the end"


def drawn(width: int, classes: int) -> nn.Linear:
    """A new linear head without bias, drawn as in the official code."""
    head = nn.Linear(width, classes, bias=False)
    nn.init.kaiming_normal_(head.weight, nonlinearity="linear")
    return head


def alignment(weight: Tensor, old: int) -> Tensor:
    """The mean length of the first `old` rows of a head [classes, D] over that of the others."""
    lengths = weight.norm(dim=1)
    return lengths[:old].mean() / lengths[old:].mean()
